/** Prints the name of the adapter that WebGPU would use here, or nothing. */
const adapter = await navigator.gpu.requestAdapter();
if (adapter !== null) console.log(adapter.info.description || adapter.info.vendor || "an adapter without a name");

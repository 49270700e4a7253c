/** What a test says where there is no GPU to test on. */

/**
 * The backend or device, or an error that says how to get one. Tests of kernels are never skipped: a suite that passes
 * has run them.
 *
 * @param opening what `webgpu()` returned
 * @throws {Error} naming the command that installs a software adapter
 */
export async function needAdapter<T>(opening: Promise<T>): Promise<T> {
  try {
    return await opening;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`these tests compare GPU kernels with their references: ${why}\nrun: deno task setup`, { cause });
  }
}

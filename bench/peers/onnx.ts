/** ONNX models made here: the part of the format that a chain of nodes needs. */
import protobuf from "npm:protobufjs@8.8.1";

// A part of onnx.proto, with its numbers.
const { root } = protobuf.parse(
  `
syntax = "proto2";
message AttributeProto { optional string name = 1; optional float f = 2; optional int64 i = 3; repeated int64 ints = 8; optional int32 type = 20; }
message NodeProto {
  repeated string input = 1; repeated string output = 2; optional string name = 3; optional string op_type = 4;
  repeated AttributeProto attribute = 5; optional string domain = 7;
}
message TensorProto { repeated int64 dims = 1; optional int32 data_type = 2; optional string name = 8; optional bytes raw_data = 9; }
message Dimension { optional int64 dim_value = 1; }
message TensorShapeProto { repeated Dimension dim = 1; }
message TensorType { optional int32 elem_type = 1; optional TensorShapeProto shape = 2; }
message TypeProto { optional TensorType tensor_type = 1; }
message ValueInfoProto { optional string name = 1; optional TypeProto type = 2; }
message GraphProto {
  repeated NodeProto node = 1; optional string name = 2; repeated TensorProto initializer = 5;
  repeated ValueInfoProto input = 11; repeated ValueInfoProto output = 12;
}
message OperatorSetIdProto { optional string domain = 1; optional int64 version = 2; }
message ModelProto { optional int64 ir_version = 1; optional GraphProto graph = 7; repeated OperatorSetIdProto opset_import = 8; }
`,
  { keepCase: true },
);
const ModelProto = root.lookupType("ModelProto");

/** Element types by ONNX's numbers. */
export const onnxTypes = { f32: 1, i32: 6, i64: 7, f16: 10 } as const;
/** One of them. */
export type OnnxType = keyof typeof onnxTypes;

/** One operation; inputs and outputs by name, an empty name is one that is left out. */
export interface Node {
  readonly op: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly domain?: string;
  /** Whole numbers and lists of them. */
  readonly attributes?: Readonly<Record<string, number | readonly number[]>>;
}

/** A tensor that the model holds. */
export interface Constant {
  readonly name: string;
  readonly type: OnnxType;
  readonly shape: readonly number[];
  readonly values:
    | Float32Array<ArrayBuffer>
    | Float16Array<ArrayBuffer>
    | Int32Array<ArrayBuffer>
    | BigInt64Array<ArrayBuffer>;
}

/** A model of nodes over constants, with one result. */
export function modelOf(
  nodes: readonly Node[],
  constants: readonly Constant[],
  output: { readonly name: string; readonly type: OnnxType; readonly shape: readonly number[] },
): Uint8Array {
  const dim = output.shape.map((n) => ({ dim_value: n }));
  return ModelProto.encode(ModelProto.create({
    ir_version: 8,
    opset_import: [{ domain: "", version: 17 }, { domain: "com.microsoft", version: 1 }],
    graph: {
      name: "chain",
      node: nodes.map(({ op, inputs, outputs, domain = "", attributes = {} }, i) => ({
        ...{ op_type: op, name: `${op}${i}`, input: inputs, output: outputs, domain },
        attribute: Object.entries(attributes).map(([name, value]) =>
          typeof value === "number" ? { name, i: value, type: 2 } : { name, ints: value, type: 7 }
        ),
      })),
      initializer: constants.map(({ name, type, shape, values }) => ({
        ...{ name, dims: shape, data_type: onnxTypes[type] },
        raw_data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
      })),
      output: [{ name: output.name, type: { tensor_type: { elem_type: onnxTypes[output.type], shape: { dim } } } }],
    },
  })).finish();
}

/** Errors: `[op] what is wrong: left [2,3], right [4,5] (3 ≠ 4)`, as classes that a program can tell apart. */

/** The base of every error that flashtape throws on purpose. */
export class FlashtapeError extends Error {
  /** The function that refused, as users call it. */
  readonly op: string;
  static {
    this.prototype.name = "FlashtapeError"; // spelled out in each class, since minifiers shorten their names
  }
  /**
   * An error of a function.
   * @param op the function that refuses
   * @param message what is wrong, with the shapes and numbers at fault, and the way out when there is one
   */
  constructor(op: string, message: string, options?: ErrorOptions) {
    super(`[${op}] ${message}`, options);
    this.op = op;
  }
}

/** Shapes, axes or ranks that do not fit each other. */
export class ShapeError extends FlashtapeError {
  static {
    this.prototype.name = "ShapeError";
  }
}
/** An element type that the call cannot take. */
export class DTypeError extends FlashtapeError {
  static {
    this.prototype.name = "DTypeError";
  }
}
/** An option or value out of its range, NaN included. */
export class ValueError extends FlashtapeError {
  static {
    this.prototype.name = "ValueError";
  }
}
/** An index outside its axis. */
export class IndexError extends FlashtapeError {
  static {
    this.prototype.name = "IndexError";
  }
}
/** A tensor touched after it was disposed, or after a call consumed it. */
export class DisposedError extends FlashtapeError {
  static {
    this.prototype.name = "DisposedError";
  }
}
/** Something that this backend or runtime cannot do. */
export class UnsupportedError extends FlashtapeError {
  static {
    this.prototype.name = "UnsupportedError";
  }
}
/** A file or byte string that is not what it says it is. */
export class FormatError extends FlashtapeError {
  static {
    this.prototype.name = "FormatError";
  }
}
/** A size beyond a limit of the device; names both. */
export class LimitError extends FlashtapeError {
  static {
    this.prototype.name = "LimitError";
  }
}
/** The device has no memory left for an allocation. */
export class OutOfMemoryError extends FlashtapeError {
  static {
    this.prototype.name = "OutOfMemoryError";
  }
}
/** The device was lost; its tensors are gone. */
export class DeviceLostError extends FlashtapeError {
  static {
    this.prototype.name = "DeviceLostError";
  }
}
/** The device reported an error that no call expected. */
export class DeviceError extends FlashtapeError {
  static {
    this.prototype.name = "DeviceError";
  }
}

/** `[2,3]`: a shape as errors print it. */
export function show(shape: readonly number[]): string {
  return `[${shape.join(",")}]`;
}

/**
 * XDR (RFC 4506) as ONC RPC needs it. The decoder is total: any bytes give a value or `XdrError`,
 * and every count is checked against the bytes present before anything is allocated. Readers and
 * writers work in place on a Buffer and are reused from call to call, so decoding a call allocates
 * nothing. Offsets are bytes; u64 values that only have to be compared or added are read as numbers.
 */
export class XdrError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'XdrError';
  }
}

const nothing = Buffer.alloc(0);

export class XdrReader {
  bytes: Buffer = nothing;
  view: DataView = viewOf(nothing);
  position = 0;
  end = 0;

  static of(bytes: Buffer): XdrReader {
    const reader = new XdrReader();
    reader.reset(bytes, viewOf(bytes), 0, bytes.length);
    return reader;
  }

  reset(bytes: Buffer, view: DataView, start: number, end: number): void {
    this.bytes = bytes;
    this.view = view;
    this.position = start;
    this.end = end;
  }

  get remaining(): number {
    return this.end - this.position;
  }

  u32(): number {
    const at = this.position;
    if (at + 4 > this.end) throw new XdrError(`4 bytes wanted at ${at}, the message ends`);
    this.position = at + 4;
    return this.view.getUint32(at);
  }

  i32(): number {
    return this.u32() | 0;
  }

  /** Any value of 2^53 and more may be rounded, and is still at least 2^53. */
  u64Number(): number {
    const high = this.u32();
    return high * 0x1_0000_0000 + this.u32();
  }

  u64(): bigint {
    const high = BigInt(this.u32());
    return (high << 32n) | BigInt(this.u32());
  }

  /** RFC 4506 4.4: 0 or 1, nothing else. */
  bool(): boolean {
    const value = this.u32();
    if (value > 1) throw new XdrError(`a boolean is ${value}`);
    return value === 1;
  }

  /** Bytes of a fixed length, as a view of the message; padding is skipped. */
  fixed(length: number): Buffer {
    const at = this.skip(length);
    return this.bytes.subarray(at, at + length);
  }

  /** Variable-length opaque, as a view of the message. */
  opaque(lengthMax: number): Buffer {
    return this.fixed(this.count(lengthMax));
  }

  /** A length in front of opaque bytes, checked against the bound; the bytes are not taken yet. */
  count(lengthMax: number): number {
    const length = this.u32();
    if (length > lengthMax) throw new XdrError(`${length} bytes where ${lengthMax} are allowed`);
    return length;
  }

  /** Steps over `length` bytes and their padding; the position of the first. */
  skip(length: number): number {
    const at = this.position;
    const padded = (length + 3) & ~3;
    if (length > this.end - at || padded > this.end - at) {
      throw new XdrError(`${length} bytes wanted at ${at}, ${this.end - at} are left`);
    }
    this.position = at + padded;
    return at;
  }

  /** A string of bytes that have to be UTF-8 no stricter than the caller asks; see nfs3/types.ts. */
  text(lengthMax: number): string {
    return this.opaque(lengthMax).toString('utf8');
  }

  /** An array of u32, its count checked against the bytes present. */
  u32Array(countMax: number): number[] {
    const count = this.u32();
    if (count > countMax || count * 4 > this.remaining) {
      throw new XdrError(`an array of ${count} where ${countMax} are allowed`);
    }
    const values: number[] = [];
    for (let index = 0; index < count; index++) values.push(this.u32());
    return values;
  }

  /** Arguments have to end where the message ends. */
  done(): void {
    if (this.position !== this.end) throw new XdrError(`${this.remaining} bytes too many`);
  }
}

/**
 * Writes into memory that somebody else provides and has sized; running over its end is a fault of
 * ours and throws RangeError (from DataView), never writes elsewhere.
 */
export class XdrWriter {
  bytes: Buffer = nothing;
  view: DataView = viewOf(nothing);
  position = 0;

  static ofSize(sizeBytes: number): XdrWriter {
    const writer = new XdrWriter();
    const bytes = Buffer.allocUnsafeSlow(sizeBytes);
    writer.reset(bytes, viewOf(bytes), 0);
    return writer;
  }

  reset(bytes: Buffer, view: DataView, position: number): void {
    this.bytes = bytes;
    this.view = view;
    this.position = position;
  }

  /** What was written since `start`, as a view. */
  written(start = 0): Buffer {
    return this.bytes.subarray(start, this.position);
  }

  u32(value: number): void {
    this.view.setUint32(this.position, value);
    this.position += 4;
  }

  u64Number(value: number): void {
    const high = Math.floor(value / 0x1_0000_0000);
    this.view.setUint32(this.position, high);
    this.view.setUint32(this.position + 4, value - high * 0x1_0000_0000);
    this.position += 8;
  }

  u64(value: bigint): void {
    this.view.setBigUint64(this.position, BigInt.asUintN(64, value));
    this.position += 8;
  }

  bool(value: boolean): void {
    this.u32(value ? 1 : 0);
  }

  /** Bytes without a count, padded with zeros to four. */
  fixed(source: Uint8Array): void {
    if (source.length > this.bytes.length - this.position) throw new RangeError('XDR: too long');
    this.bytes.set(source, this.position);
    this.position += source.length;
    this.pad();
  }

  opaque(source: Uint8Array): void {
    this.u32(source.length);
    this.fixed(source);
  }

  text(value: string): void {
    const length = Buffer.byteLength(value);
    this.u32(length);
    if (length > this.bytes.length - this.position) throw new RangeError('XDR: too long');
    this.bytes.write(value, this.position, length, 'utf8');
    this.position += length;
    this.pad();
  }

  /** Zeros up to the next multiple of four after bytes that were put in place directly. */
  pad(): void {
    while ((this.position & 3) !== 0) {
      if (this.position >= this.bytes.length) throw new RangeError('XDR: too long');
      this.bytes[this.position++] = 0;
    }
  }
}

export function viewOf(bytes: Buffer): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

export function padded(length: number): number {
  return (length + 3) & ~3;
}

import { checkOutputSize, isZero, OutputFile, zeroPieceBytes } from './disk-output.ts';
import type { DiskOutput, OutputOptions } from './disk-output.ts';
import { checkRange } from './mapped-disk.ts';

/** A raw, sparse file of exactly `sizeBytes`. */
export async function createRawWriter(
  path: string,
  sizeBytes: number,
  options: OutputOptions = {},
): Promise<DiskOutput> {
  checkOutputSize(path, sizeBytes);
  const file = await OutputFile.create(path, options);
  try {
    await file.truncate(sizeBytes);
  } catch (error) {
    await file.abandon();
    throw error;
  }
  return new RawOutput(file, sizeBytes);
}

class RawOutput implements DiskOutput {
  readonly path: string;
  readonly sizeBytes: number;
  readonly #file: OutputFile;
  /** One bit for each unit in which something was written: elsewhere zeros need no work. */
  readonly #touched: Uint8Array;
  readonly #unitBytes: number;

  constructor(file: OutputFile, sizeBytes: number) {
    this.path = file.path;
    this.sizeBytes = sizeBytes;
    this.#file = file;
    // At most 2^24 units, 2 MiB of bits, whatever the disk's size.
    this.#unitBytes = Math.max(2 ** 20, 2 ** Math.ceil(Math.log2(sizeBytes / 2 ** 24)));
    this.#touched = new Uint8Array(Math.ceil(sizeBytes / this.#unitBytes / 8));
  }

  async write(source: Uint8Array, offset: number): Promise<void> {
    checkRange(this.path, this.sizeBytes, offset, source.length);
    let at = 0;
    while (at < source.length) {
      const start = at;
      const zero = isZero(source.subarray(at, pieceEnd(offset, at, source.length)));
      do at = pieceEnd(offset, at, source.length);
      while (
        at < source.length &&
        isZero(source.subarray(at, pieceEnd(offset, at, source.length))) === zero
      );
      if (zero) await this.zero(offset + start, at - start);
      else await this.#store(source.subarray(start, at), offset + start);
    }
  }

  async #store(source: Uint8Array, offset: number): Promise<void> {
    this.#eachUnit(offset, source.length, (unit) => {
      this.#touched[unit >> 3] = (this.#touched[unit >> 3] ?? 0) | (1 << (unit & 7));
      return false;
    });
    await this.#file.write(source, offset);
  }

  async zero(offset: number, length: number): Promise<void> {
    checkRange(this.path, this.sizeBytes, offset, length);
    if (length === 0) return;
    const isTouched = this.#eachUnit(
      offset,
      length,
      (unit) => ((this.#touched[unit >> 3] ?? 0) & (1 << (unit & 7))) !== 0,
    );
    if (isTouched) await this.#file.clear(offset, length);
  }

  /** True as soon as `visit` says so for a unit of the range. */
  #eachUnit(offset: number, length: number, visit: (unit: number) => boolean): boolean {
    const last = Math.floor((offset + length - 1) / this.#unitBytes);
    for (let unit = Math.floor(offset / this.#unitBytes); unit <= last; unit++) {
      if (visit(unit)) return true;
    }
    return false;
  }

  finish(): Promise<void> {
    return this.#file.finish();
  }

  abandon(): Promise<void> {
    return this.#file.abandon();
  }
}

/** The end, within the source, of the aligned piece that holds `at`. */
function pieceEnd(offset: number, at: number, length: number): number {
  return Math.min(length, at + zeroPieceBytes - ((offset + at) % zeroPieceBytes));
}

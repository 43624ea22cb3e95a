import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';
import { looksLikeDescriptor, parseDescriptor, sectorBytes } from './vmdk-descriptor.ts';
import type { VmdkDescriptor } from './vmdk-descriptor.ts';
import {
  atEnd,
  brokenVmdk,
  packedBytesMax,
  parseSparseHeader,
  readSectors,
  sparseHeaderBytes,
  unpackGrain,
} from './vmdk-sparse.ts';
import type { SparseHeader } from './vmdk-sparse.ts';

/**
 * Reads a streamOptimized VMDK as it flows, without ever going back: what an export of a running
 * machine sends (VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents").
 */
export interface VmdkStream {
  readonly sizeBytes: number;
  readonly descriptor: VmdkDescriptor | undefined;
  /**
   * Grains as they come, ascending as a rule; what was passed over comes as zeros before it, and
   * at the end up to the disk's. A grain that comes late is to be written over those zeros. Ends
   * with an error when the stream is cut off.
   */
  readonly pieces: AsyncIterable<StreamPiece>;
}

export type StreamPiece =
  | { readonly offset: number; readonly length: number; readonly zero: true }
  | {
      readonly offset: number;
      readonly length: number;
      readonly zero: false;
      readonly data: Uint8Array;
    };

export async function parseStreamOptimized(
  source: AsyncIterable<Uint8Array>,
  name: string,
): Promise<VmdkStream> {
  const reader = new StreamReader(source, name);
  const header = parseSparseHeader(await reader.take(sparseHeaderBytes), name);
  if (!header.compressed || !header.markers) {
    throw new RouseError('unsupported-format', `${name}: a VMDK, but not a streamOptimized one`, {
      advice: 'Write it to a file and open that: only streamOptimized can be read as it flows.',
    });
  }
  if (header.overheadBytes > formatLimits.streamHeadBytesMax) {
    throw new RouseError(
      'unsupported-format',
      `${name}: ${header.overheadBytes} bytes of tables come before its data`,
      { advice: 'Write it to a file and open that.' },
    );
  }
  const head = await reader.take(Math.max(0, header.overheadBytes - sparseHeaderBytes));
  return {
    sizeBytes: header.capacitySectors * sectorBytes,
    descriptor: descriptorIn(head, header, name),
    pieces: pieces(reader, header, grainsInFront(head, header)),
  };
}

function descriptorIn(
  head: Buffer,
  header: SparseHeader,
  name: string,
): VmdkDescriptor | undefined {
  const start = header.descriptorPosition - sparseHeaderBytes;
  if (start < 0 || header.descriptorBytes > formatLimits.descriptorBytesMax) return undefined;
  const text = head.subarray(start, start + header.descriptorBytes);
  return looksLikeDescriptor(text) ? parseDescriptor(text.toString('utf8'), name) : undefined;
}

/**
 * QEMU writes its tables in front and no end-of-stream marker: the number of grains then tells
 * whether all came. Undefined: the stream has to say where it ends.
 */
function grainsInFront(head: Buffer, header: SparseHeader): number | undefined {
  if (header.directoryPosition === atEnd || header.directoryPosition === 0) return undefined;
  const entry = (position: number): number => {
    const at = position - sparseHeaderBytes;
    return at >= 0 && at + 4 <= head.length ? head.readUInt32LE(at) : 0;
  };
  const covered = (header.entriesPerTable * header.grainBytes) / sectorBytes;
  const tables = Math.min(Math.ceil(header.capacitySectors / covered), head.length / 4);
  let grains = 0;
  for (let table = 0; table < tables; table++) {
    const position = entry(header.directoryPosition + table * 4) * sectorBytes;
    if (position === 0) continue;
    for (let i = 0; i < header.entriesPerTable; i++) {
      // An entry of 1 is a grain of zeros, which no marker stands for.
      if (entry(position + i * 4) > 1) grains++;
    }
  }
  return grains;
}

/** Types of markers without data: the only ones that end or interrupt the grains. */
const marker = { endOfStream: 0, grainTable: 1, grainDirectory: 2, footer: 3 } as const;

async function* pieces(
  reader: StreamReader,
  header: SparseHeader,
  grainsExpected: number | undefined,
): AsyncGenerator<StreamPiece> {
  const sizeBytes = header.capacitySectors * sectorBytes;
  let end = 0;
  let grains = 0;
  for (;;) {
    if (grainsExpected !== undefined && (await reader.isAtEnd())) break;
    const sector = await reader.take(sectorBytes);
    const value = readSectors(sector, 0);
    const packedBytes = sector.readUInt32LE(8);
    if (packedBytes === 0) {
      if (sector.readUInt32LE(12) === marker.endOfStream) break;
      await skipMetadata(reader, sector.readUInt32LE(12), value);
      continue;
    }
    const offset = value * sectorBytes;
    const data = await readGrain(reader, header, { sector, offset, packedBytes });
    if (offset > end) yield { offset: end, length: offset - end, zero: true };
    yield { offset, length: data.length, zero: false, data };
    end = Math.max(end, offset + data.length);
    grains++;
  }
  if (grains < (grainsExpected ?? 0)) throw reader.cutOff();
  if (end < sizeBytes) yield { offset: end, length: sizeBytes - end, zero: true };
}

async function skipMetadata(reader: StreamReader, type: number, sectors: number): Promise<void> {
  if (type > marker.footer) throw brokenVmdk(reader.name, `a marker of unknown type ${type}`);
  // A grain directory of 1 PiB has 2^25 entries; grain tables come one by one.
  if (sectors * sectorBytes > 2 ** 27)
    throw brokenVmdk(reader.name, `${sectors} sectors of tables`);
  await reader.skip(sectors * sectorBytes);
}

async function readGrain(
  reader: StreamReader,
  header: SparseHeader,
  grain: { readonly sector: Buffer; readonly offset: number; readonly packedBytes: number },
): Promise<Uint8Array> {
  const { sector, offset, packedBytes } = grain;
  const sizeBytes = header.capacitySectors * sectorBytes;
  if (offset % header.grainBytes !== 0 || offset >= sizeBytes) {
    throw brokenVmdk(reader.name, `a grain at ${offset} of a disk of ${sizeBytes} bytes`);
  }
  if (packedBytes > packedBytesMax(header.grainBytes)) {
    throw brokenVmdk(reader.name, `a grain of ${packedBytes} packed bytes`);
  }
  const whole = Math.ceil((12 + packedBytes) / sectorBytes) * sectorBytes;
  const rest = await reader.take(whole - sectorBytes);
  const packed = Buffer.concat([sector.subarray(12), rest]).subarray(0, packedBytes);
  const length = Math.min(header.grainBytes, sizeBytes - offset);
  const data = await unpackGrain(packed, length, header.grainBytes, reader.name, offset);
  return data.subarray(0, length);
}

/** Exact pieces of an input in chunks of any size; holds one chunk and one piece at most. */
class StreamReader {
  readonly name: string;
  readonly #chunks: AsyncIterator<Uint8Array>;
  #chunk: Buffer = Buffer.alloc(0);
  #position = 0;

  constructor(source: AsyncIterable<Uint8Array>, name: string) {
    this.#chunks = source[Symbol.asyncIterator]();
    this.name = name;
  }

  async take(length: number): Promise<Buffer> {
    const bytes = Buffer.alloc(length);
    let done = 0;
    while (done < length) {
      if (this.#chunk.length === 0 && !(await this.#next())) throw this.cutOff();
      const part = Math.min(length - done, this.#chunk.length);
      this.#chunk.copy(bytes, done, 0, part);
      this.#advance(part);
      done += part;
    }
    return bytes;
  }

  async skip(length: number): Promise<void> {
    let left = length;
    while (left > 0) {
      if (this.#chunk.length === 0 && !(await this.#next())) throw this.cutOff();
      const part = Math.min(left, this.#chunk.length);
      this.#advance(part);
      left -= part;
    }
  }

  async isAtEnd(): Promise<boolean> {
    return this.#chunk.length === 0 && !(await this.#next());
  }

  cutOff(): RouseError {
    return new RouseError(
      'corrupt-data',
      `${this.name}: the stream ended after ${this.#position} bytes, before the disk's end`,
      { advice: 'Start the transfer again.' },
    );
  }

  #advance(bytes: number): void {
    this.#chunk = this.#chunk.subarray(bytes);
    this.#position += bytes;
  }

  /** False at the end. */
  async #next(): Promise<boolean> {
    for (;;) {
      const { done, value } = await this.#chunks.next();
      if (done === true) return false;
      if (value.length === 0) continue;
      this.#chunk = Buffer.from(value.buffer, value.byteOffset, value.length);
      return true;
    }
  }
}

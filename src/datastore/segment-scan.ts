/** Reading a segment from front to back: its batches' headers, and their pages when asked. */
import { crc32 } from 'node:zlib';
import type { OpenFile } from '../lib/files.ts';
import {
  batchHeaderBytes,
  batchHeaderBytesMax,
  batchUnits,
  decodeBatchHeader,
  pageBytes,
  unitBytes,
  type Batch,
} from './layer-format.ts';
import type { Segment } from './segments.ts';

export interface FoundBatch {
  readonly segment: Segment;
  /** Unit of the header. */
  readonly unit: number;
  readonly batch: Batch;
}

/** Unit of the first page with bytes. */
export function firstPageUnit(found: FoundBatch): number {
  const { extents, checksums } = found.batch;
  return found.unit + batchHeaderBytes(extents.length, checksums.length) / unitBytes;
}

/** Units that the batch takes, header and pages. */
export function unitsOf(found: FoundBatch): number {
  return batchUnits(found.batch.extents.length, found.batch.checksums.length);
}

/**
 * The batches from `unit` on, until the first place where none begins. A batch whose sequence is
 * not greater than the one before is no batch of this life of the segment.
 */
export async function* batchesOf(
  segment: Segment,
  unit: number,
  endUnit = Number.POSITIVE_INFINITY,
): AsyncGenerator<FoundBatch> {
  const window = new ReadWindow(segment.file);
  let sequence = 0;
  for (let at = unit; at < endUnit;) {
    const bytes = await window.read(at * unitBytes, batchHeaderBytesMax);
    const batch = decodeBatchHeader(bytes, segment.header.nonce);
    if (batch === undefined || batch.sequence <= sequence) return;
    sequence = batch.sequence;
    yield { segment, unit: at, batch };
    at += batchUnits(batch.extents.length, batch.checksums.length);
  }
}

/** Whether the bytes of all pages are there as they were written. */
export async function pagesIntact(found: FoundBatch, window: ReadWindow): Promise<boolean> {
  const position = firstPageUnit(found) * unitBytes;
  for (const [i, checksum] of found.batch.checksums.entries()) {
    const bytes = await window.read(position + i * pageBytes, pageBytes);
    if (bytes.length < pageBytes || crc32(bytes) !== checksum) return false;
  }
  return true;
}

const windowBytes = 1024 * 1024;

/** Reads ahead in pieces of 1 MiB. What it answers is valid until the next call. */
export class ReadWindow {
  readonly #file: OpenFile;
  readonly #buffer = Buffer.allocUnsafe(windowBytes);
  #start = 0;
  #length = 0;

  constructor(file: OpenFile) {
    this.#file = file;
  }

  /** At most `length` bytes (and no more than the window); fewer at the end of the file. */
  async read(position: number, length: number): Promise<Buffer> {
    const known = position >= this.#start && position + length <= this.#start + this.#length;
    if (!known) {
      this.#length = await this.#file.read(this.#buffer, position);
      this.#start = position;
    }
    const from = position - this.#start;
    return this.#buffer.subarray(from, Math.min(this.#length, from + length));
  }
}

/**
 * The bytes of a clone's write layer on disk. All integers are little-endian.
 *
 * A *segment* is a file of at most 64 MiB: its header twice (units 0 and 1), then batches. The
 * *unit* of position is 1 KiB. A *batch* is one append: a self-checking header that names extents
 * of pages, then the bytes of those pages, each page with its own CRC-32 in the header. Extents of
 * zeros have no bytes. A random nonce per segment keeps guest data from ever being taken for a
 * header. Decoders are total: any bytes give a value or undefined.
 */
import { crc32 } from 'node:zlib';
import { datastoreLimits } from '../limits.ts';

export const pageBytes = 4096;
export const unitBytes = 1024;
export const unitsPerPage = pageBytes / unitBytes;
export const segmentUnits = datastoreLimits.segmentBytes / unitBytes;
/** Two copies of the header: one bad sector does not cost the segment. */
export const segmentHeaderUnits = 2;

const layerVersion = 1;
const segmentMagic = 0x534c5752; // 'RWLS'
const batchMagic = 0x424c5752; // 'RWLB'

export interface SegmentHeader {
  readonly id: number;
  readonly slot: number;
  readonly nonce: bigint;
  /** Segments before this one may miss batches: a power cut or a failed sync took them. */
  readonly afterFailure: boolean;
}

export function encodeSegmentHeader(header: SegmentHeader): Buffer {
  const bytes = Buffer.alloc(unitBytes * segmentHeaderUnits);
  bytes.writeUInt32LE(segmentMagic, 0);
  bytes.writeUInt32LE(layerVersion, 8);
  bytes.writeUInt32LE(header.slot, 12);
  bytes.writeBigUInt64LE(BigInt(header.id), 16);
  bytes.writeBigUInt64LE(header.nonce, 24);
  bytes.writeUInt32LE(header.afterFailure ? 1 : 0, 32);
  bytes.writeUInt32LE(crc32(bytes.subarray(8, 64)), 4);
  bytes.copy(bytes, unitBytes, 0, 64);
  return bytes;
}

/** `newer`: written by a later version. `empty`: never written. `bad`: no copy is whole. */
export function decodeSegmentHeader(bytes: Buffer): SegmentHeader | 'newer' | 'empty' | 'bad' {
  let empty = true;
  for (let copy = 0; copy < segmentHeaderUnits; copy++) {
    const at = copy * unitBytes;
    if (bytes.length < at + 64) break;
    const part = bytes.subarray(at, at + 64);
    if (part.some((byte) => byte !== 0)) empty = false;
    if (part.readUInt32LE(0) !== segmentMagic) continue;
    if (part.readUInt32LE(4) !== crc32(part.subarray(8))) continue;
    if (part.readUInt32LE(8) !== layerVersion) return 'newer';
    return {
      slot: part.readUInt32LE(12),
      id: Number(part.readBigUInt64LE(16)),
      nonce: part.readBigUInt64LE(24),
      afterFailure: part.readUInt32LE(32) === 1,
    };
  }
  return empty ? 'empty' : 'bad';
}

export interface PageExtent {
  readonly disk: number;
  readonly firstPage: number;
  readonly pages: number;
  readonly zero: boolean;
}

export interface Batch {
  readonly sequence: number;
  /** Batches up to this sequence were durable when this one was written. */
  readonly syncedSequence: number;
  readonly time: { readonly seconds: number; readonly nanoseconds: number };
  readonly extents: readonly PageExtent[];
  /** One per page with bytes, in the order of the extents. */
  readonly checksums: Uint32Array;
}

const batchFixedBytes = 56;
const extentBytes = 16;

/** The largest header that a batch can have. */
export const batchHeaderBytesMax = roundUp(
  batchFixedBytes +
    extentBytes * datastoreLimits.batchExtentsMax +
    4 * datastoreLimits.batchPagesMax,
);

export function batchHeaderBytes(extents: number, pages: number): number {
  return roundUp(batchFixedBytes + extentBytes * extents + 4 * pages);
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / unitBytes) * unitBytes;
}

/** The header, padded to whole units; the pages' bytes follow it. */
export function encodeBatchHeader(batch: Batch, nonce: bigint): Buffer {
  const pages = batch.checksums.length;
  const used = batchFixedBytes + extentBytes * batch.extents.length + 4 * pages;
  const bytes = Buffer.alloc(roundUp(used));
  bytes.writeUInt32LE(batchMagic, 0);
  bytes.writeBigUInt64LE(nonce, 8);
  writeWhole(bytes, batch.sequence, 16);
  writeWhole(bytes, batch.syncedSequence, 24);
  writeWhole(bytes, batch.time.seconds, 32);
  bytes.writeUInt32LE(batch.time.nanoseconds, 40);
  bytes.writeUInt32LE(batch.extents.length, 44);
  bytes.writeUInt32LE(pages, 48);
  let at = batchFixedBytes;
  for (const extent of batch.extents) {
    bytes.writeUInt16LE(extent.disk, at);
    bytes.writeUInt16LE(extent.zero ? 1 : 0, at + 2);
    bytes.writeUInt32LE(extent.pages, at + 4);
    writeWhole(bytes, extent.firstPage, at + 8);
    at += extentBytes;
  }
  for (const checksum of batch.checksums) at = bytes.writeUInt32LE(checksum, at);
  bytes.writeUInt32LE(crc32(bytes.subarray(8, used)), 4);
  return bytes;
}

/**
 * The batch whose header begins `bytes`, or undefined when there is none. `bytes` should hold
 * `batchHeaderBytesMax` unless the file ends before.
 */
export function decodeBatchHeader(bytes: Buffer, nonce: bigint): Batch | undefined {
  if (bytes.length < batchFixedBytes || bytes.readUInt32LE(0) !== batchMagic) return undefined;
  if (bytes.readBigUInt64LE(8) !== nonce) return undefined;
  const count = bytes.readUInt32LE(44);
  const pages = bytes.readUInt32LE(48);
  if (count > datastoreLimits.batchExtentsMax || pages > datastoreLimits.batchPagesMax) {
    return undefined;
  }
  const used = batchFixedBytes + extentBytes * count + 4 * pages;
  if (bytes.length < used) return undefined;
  if (bytes.readUInt32LE(4) !== crc32(bytes.subarray(8, used))) return undefined;
  const extents = decodeExtents(bytes, count, pages);
  const sequence = readWhole(bytes, 16);
  const syncedSequence = readWhole(bytes, 24);
  const seconds = readWhole(bytes, 32);
  if (extents === undefined || sequence === undefined) return undefined;
  if (syncedSequence === undefined || seconds === undefined) return undefined;
  const checksums = new Uint32Array(pages);
  const start = batchFixedBytes + extentBytes * count;
  for (let i = 0; i < pages; i++) checksums[i] = bytes.readUInt32LE(start + 4 * i);
  const time = { seconds, nanoseconds: bytes.readUInt32LE(40) };
  return { sequence, syncedSequence, time, extents, checksums };
}

function decodeExtents(bytes: Buffer, count: number, pages: number): PageExtent[] | undefined {
  const extents: PageExtent[] = [];
  let withBytes = 0;
  for (let i = 0; i < count; i++) {
    const at = batchFixedBytes + extentBytes * i;
    const firstPage = readWhole(bytes, at + 8);
    if (firstPage === undefined) return undefined;
    const zero = bytes.readUInt16LE(at + 2) === 1;
    const extent = {
      disk: bytes.readUInt16LE(at),
      firstPage,
      pages: bytes.readUInt32LE(at + 4),
      zero,
    };
    if (!zero) withBytes += extent.pages;
    extents.push(extent);
  }
  return withBytes === pages ? extents : undefined;
}

/** Units that a batch takes, its pages included. */
export function batchUnits(extents: number, pages: number): number {
  return batchHeaderBytes(extents, pages) / unitBytes + pages * unitsPerPage;
}

function writeWhole(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32LE(value % 0x1_0000_0000, at);
  bytes.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4);
}

/** undefined: not exactly representable, so never written by us. */
function readWhole(bytes: Buffer, at: number): number | undefined {
  const high = bytes.readUInt32LE(at + 4);
  return high > 0x1f_ffff ? undefined : high * 0x1_0000_0000 + bytes.readUInt32LE(at);
}

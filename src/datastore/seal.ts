/**
 * What was written to a clone, taken out of it: as ranges, into a new saveset, as a raw file. Each
 * sees the disks as they were at one moment, all disks the same one, and costs what was written
 * (a raw file: what the disk holds).
 */
import type { Extent } from '../lib/disk.ts';
import type { Files, OpenFile } from '../lib/files.ts';
import { datastoreLimits } from '../limits.ts';
import type { DiskRoot, SavesetWriter } from '../vault/api.ts';
import type { CloneRecord } from './clone-record.ts';
import { pageBytes } from './layer-format.ts';
import type { DiskView } from './layer-reader.ts';
import { absent, pagesPerGroup, zeroFlag } from './page-map.ts';
import type { WriteLayer } from './write-layer.ts';

export interface SealOptions {
  readonly onProgress?: (progress: {
    readonly doneBytes: number;
    readonly totalBytes: number;
  }) => void;
  readonly signal?: AbortSignal;
}

/** A disk of the clone as it is now. */
export interface SealedDisk {
  readonly name: string;
  readonly root: DiskRoot;
}

/** All that a sealed saveset consists of. */
export interface SealedContent {
  readonly disks: readonly SealedDisk[];
  readonly files: readonly { readonly name: string; readonly bytes: Buffer }[];
}

/** Extents of what was written, ascending; not past the end of the disk. */
export function* writtenExtents(view: DiskView): Generator<Extent> {
  let current: Extent | undefined;
  for (const group of view.map.groups()) {
    const firstPage = group * pagesPerGroup;
    const first = view.map.find(firstPage);
    for (let i = 0; i < pagesPerGroup; i++) {
      const position = view.map.positionAt(first + i);
      if (position === absent) continue;
      const offset = (firstPage + i) * pageBytes;
      const length = Math.min(pageBytes, view.sizeBytes - offset);
      const zero = position >= zeroFlag;
      if (
        current !== undefined &&
        current.offset + current.length === offset &&
        current.zero === zero
      ) {
        current = { ...current, length: current.length + length };
      } else {
        if (current !== undefined) yield current;
        current = { offset, length, zero };
      }
    }
  }
  if (current !== undefined) yield current;
}

export async function* changedExtents(layer: WriteLayer, disk: number): AsyncGenerator<Extent> {
  const view = layer.snapshot(disk);
  try {
    yield* writtenExtents(view);
  } finally {
    view.release();
  }
}

/** Whole blocks that were written at least in part, ascending, merged. */
function* touchedBlocks(view: DiskView, blockBytes: number): Generator<Extent> {
  let start = -1;
  let end = -1;
  for (const extent of writtenExtents(view)) {
    const from = extent.offset - (extent.offset % blockBytes);
    const to = Math.ceil((extent.offset + extent.length) / blockBytes) * blockBytes;
    if (from > end) {
      if (end > start) yield { offset: start, length: end - start, zero: false };
      start = from;
    }
    end = Math.max(end, Math.min(to, view.sizeBytes));
  }
  if (end > start) yield { offset: start, length: end - start, zero: false };
}

export async function sealDisks(
  layer: WriteLayer,
  record: CloneRecord,
  writer: SavesetWriter,
  blockBytes: number,
  options: SealOptions = {},
): Promise<SealedDisk[]> {
  const sealed: SealedDisk[] = [];
  const views = record.disks.map((_, disk) => layer.snapshot(disk));
  try {
    let totalBytes = 0;
    for (const view of views) {
      for (const { length } of touchedBlocks(view, blockBytes)) totalBytes += length;
    }
    let doneBytes = 0;
    for (const [disk, view] of views.entries()) {
      const { name, root } = record.disks[disk] ?? { name: '', root: view.base.root };
      const source = `${record.cloneId}/${name}`;
      const target = writer.disk(name, view.sizeBytes, source, root);
      for (const { offset, length } of touchedBlocks(view, blockBytes)) {
        for await (const piece of pieces(layer, view, offset, length, blockBytes, options.signal)) {
          if (isZero(piece.bytes)) await target.zero(piece.offset, piece.bytes.length);
          else await target.write(piece.offset, piece.bytes);
          doneBytes += piece.bytes.length;
          options.onProgress?.({ doneBytes, totalBytes });
        }
      }
      sealed.push({ name, root: await target.finish() });
    }
    return sealed;
  } finally {
    for (const view of views) view.release();
  }
}

/** Reads a range in pieces of whole blocks; the memory is used again for the next. */
async function* pieces(
  layer: WriteLayer,
  view: DiskView,
  start: number,
  length: number,
  blockBytes: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<{ readonly offset: number; readonly bytes: Buffer }> {
  const most = Math.max(blockBytes, datastoreLimits.sealReadBytes);
  const step = most - (most % blockBytes);
  const buffer = Buffer.allocUnsafe(Math.min(step, length));
  for (let offset = start; offset < start + length; offset += step) {
    signal?.throwIfAborted();
    const bytes = buffer.subarray(0, Math.min(step, start + length - offset));
    await layer.reader.read(view, offset, bytes);
    yield { offset, bytes };
  }
}

/** One GiB of the base's map at a time, so that a map of 16 TiB is never in memory. */
const strideBytes = 1024 * 1024 * 1024;

export async function exportRaw(
  layer: WriteLayer,
  disk: number,
  files: Files,
  path: string,
  options: SealOptions = {},
): Promise<void> {
  const view = layer.snapshot(disk);
  const file = await files.open(path, 'create');
  try {
    await file.truncate(view.sizeBytes);
    for (let start = 0; start < view.sizeBytes; start += strideBytes) {
      const length = Math.min(strideBytes, view.sizeBytes - start);
      for (const extent of await view.base.extents(start, length)) {
        if (!extent.zero) await copyRange(layer, view, extent, file, options);
      }
    }
    // The base's holes may have been written.
    for (const extent of writtenExtents(view)) await copyRange(layer, view, extent, file, options);
    await file.sync();
  } catch (error) {
    await files.remove(path).catch(() => undefined);
    throw error;
  } finally {
    view.release();
    await file.close();
  }
}

async function copyRange(
  layer: WriteLayer,
  view: DiskView,
  extent: Extent,
  file: OpenFile,
  options: SealOptions,
): Promise<void> {
  const { offset, length } = extent;
  for await (const piece of pieces(layer, view, offset, length, pageBytes, options.signal)) {
    if (extent.zero || isZero(piece.bytes)) continue;
    await file.write([piece.bytes], piece.offset);
    options.onProgress?.({
      doneBytes: piece.offset + piece.bytes.length,
      totalBytes: view.sizeBytes,
    });
  }
}

function isZero(bytes: Buffer): boolean {
  if (bytes[0] !== 0) return false;
  return bytes.length === 1 || bytes.compare(bytes, 0, bytes.length - 1, 1) === 0;
}

import { RouseError } from '../errors.ts';
import type { Extent, ReadableDisk } from '../lib/disk.ts';
import { proxyLimits } from '../limits.ts';
import type { DiskRoot, DiskWriter, SavesetWriter } from '../vault/api.ts';
import type { JobProgress } from './jobs.ts';

/** One disk to take in, and what of it has to be looked at. */
export interface IngestDisk {
  readonly name: string;
  readonly source: string;
  readonly disk: ReadableDisk;
  /** With `changes`: the last saveset's disk, on which only the changes are laid. */
  readonly base?: DiskRoot;
  /** Ranges that may differ from `base`; undefined: the whole disk. */
  changes?(offset: number, length: number): Promise<readonly Extent[]>;
}

/**
 * Reads disks into a saveset: holes and unchanged ranges are never read, several reads are in
 * flight at once, and what is in memory is bounded by limits.ts whatever the size of the disk.
 */
export async function ingestDisks(
  writer: SavesetWriter,
  disks: readonly IngestDisk[],
  blockBytes: number,
  progress: JobProgress,
): Promise<void> {
  const report = new IngestReport(
    writer,
    disks.map(({ disk }) => disk),
    progress,
  );
  for (const disk of disks) {
    await ingestDisk(writer, disk, blockBytes, report);
  }
  report.tell();
}

/** What a job tells of its disks while they are taken in. */
export class IngestReport {
  #doneBytes = 0;
  readonly #totalBytes: number;
  readonly #writer: SavesetWriter;
  readonly #progress: JobProgress;

  constructor(
    writer: SavesetWriter,
    disks: readonly { readonly sizeBytes: number }[],
    progress: JobProgress,
  ) {
    this.#writer = writer;
    this.#progress = progress;
    this.#totalBytes = disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  }

  get signal(): AbortSignal {
    return this.#progress.signal;
  }

  done(bytes: number): void {
    this.#doneBytes += bytes;
    this.tell();
  }

  tell(): void {
    const { newBytes, knownBytes } = this.#writer.cost;
    this.#progress.update({
      doneBytes: this.#doneBytes,
      totalBytes: this.#totalBytes,
      newBytes,
      knownBytes,
    });
  }
}

async function ingestDisk(
  writer: SavesetWriter,
  from: IngestDisk,
  blockBytes: number,
  report: IngestReport,
): Promise<void> {
  const { disk } = from;
  const out = writer.disk(from.name, disk.sizeBytes, from.source, from.base);
  const reads = new Reads(disk, out, report);
  for (let at = 0; at < disk.sizeBytes; at += proxyLimits.extentStrideBytes) {
    const length = Math.min(proxyLimits.extentStrideBytes, disk.sizeBytes - at);
    for (const extent of await plan(from, at, length, blockBytes)) {
      report.signal.throwIfAborted();
      if (extent.skip) report.done(extent.length);
      else if (extent.zero) await zeroRange(out, extent, from, report);
      else await reads.add(extent);
    }
  }
  await reads.finish();
  await out.finish();
}

async function zeroRange(
  out: DiskWriter,
  extent: Extent,
  from: IngestDisk,
  report: IngestReport,
): Promise<void> {
  // Without a base everything is zero already.
  if (from.base !== undefined) await out.zero(extent.offset, extent.length);
  report.done(extent.length);
}

interface Planned extends Extent {
  readonly skip: boolean;
}

/** What to do with each range of the stride, in whole blocks (the stride is a multiple of them). */
async function plan(
  from: IngestDisk,
  offset: number,
  length: number,
  blockBytes: number,
): Promise<Planned[]> {
  const allocated = await from.disk.extents(offset, length);
  const changed = (await from.changes?.(offset, length)) ?? [{ offset, length, zero: false }];
  const end = offset + length;
  const data = wholeBlocks(allocated, blockBytes, end, (extent) => !extent.zero);
  const dirty = wholeBlocks(changed, blockBytes, end, () => true);
  const planned: Planned[] = [];
  let at = offset;
  const edges = [...data.flat(), ...dirty.flat(), end].sort((a, b) => a - b);
  for (const edge of edges) {
    if (edge <= at) continue;
    const skip = !covers(dirty, at);
    planned.push({ offset: at, length: edge - at, zero: !covers(data, at), skip });
    at = edge;
  }
  return planned;
}

type Range = readonly [start: number, end: number];

/** The chosen extents widened to whole blocks, merged, within the stride. */
export function wholeBlocks(
  extents: readonly Extent[],
  blockBytes: number,
  limit: number,
  chosen: (extent: Extent) => boolean,
): Range[] {
  const ranges: [number, number][] = [];
  for (const extent of extents) {
    if (extent.length === 0 || !chosen(extent)) continue;
    const start = Math.floor(extent.offset / blockBytes) * blockBytes;
    const end = Math.min(
      Math.ceil((extent.offset + extent.length) / blockBytes) * blockBytes,
      limit,
    );
    const last = ranges.at(-1);
    if (last !== undefined && start <= last[1]) last[1] = Math.max(last[1], end);
    else ranges.push([start, end]);
  }
  return ranges;
}

/** Ranges are sorted and few enough within a stride for a binary search each. */
function covers(ranges: readonly Range[], at: number): boolean {
  let low = 0;
  let high = ranges.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    const [start, end] = ranges[middle]!;
    if (at < start) high = middle - 1;
    else if (at >= end) low = middle + 1;
    else return true;
  }
  return false;
}

/** Up to `ingestReadsMax` reads of one disk in flight, each with a buffer of its own. */
class Reads {
  readonly #disk: ReadableDisk;
  readonly #out: DiskWriter;
  readonly #report: IngestReport;
  readonly #free: Buffer[];
  readonly #inFlight = new Set<Promise<void>>();
  #failure: unknown;

  constructor(disk: ReadableDisk, out: DiskWriter, report: IngestReport) {
    this.#disk = disk;
    this.#out = out;
    this.#report = report;
    this.#free = Array.from({ length: proxyLimits.ingestReadsMax }, () =>
      Buffer.allocUnsafe(proxyLimits.ingestReadBytes),
    );
  }

  async add(extent: Extent): Promise<void> {
    const end = extent.offset + extent.length;
    for (let at = extent.offset; at < end; at += proxyLimits.ingestReadBytes) {
      this.#report.signal.throwIfAborted();
      while (this.#free.length === 0) await Promise.race(this.#inFlight);
      if (this.#failure !== undefined) break;
      const buffer = this.#free.pop()!;
      const length = Math.min(buffer.length, end - at);
      const read = this.#one(buffer, at, length).finally(() => {
        this.#free.push(buffer);
        this.#inFlight.delete(read);
      });
      this.#inFlight.add(read);
    }
    if (this.#failure !== undefined) await this.finish();
  }

  async #one(buffer: Buffer, offset: number, length: number): Promise<void> {
    try {
      const bytes = buffer.subarray(0, length);
      await this.#disk.read(bytes, offset);
      await this.#out.write(offset, bytes);
      this.#report.done(length);
    } catch (error) {
      this.#failure ??= error;
    }
  }

  async finish(): Promise<void> {
    await Promise.all(this.#inFlight);
    if (this.#failure === undefined) return;
    if (this.#failure instanceof Error) throw this.#failure;
    throw new RouseError('io-error', String(this.#failure));
  }
}

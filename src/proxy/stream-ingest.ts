import { isRouseError, RouseError } from '../errors.ts';
import { parseStreamOptimized } from '../formats/vmdk-stream.ts';
import { proxyLimits } from '../limits.ts';
import type { DiskWriter, SavesetWriter } from '../vault/api.ts';
import { IngestReport } from './ingest.ts';
import type { JobProgress } from './jobs.ts';
import { streamLimits } from './stream-limits.ts';

/** A disk that comes as a streamOptimized VMDK, from its beginning to its end. */
export interface StreamedDisk {
  readonly name: string;
  readonly source: string;
  readonly sizeBytes: number;
  download(signal: AbortSignal): AsyncIterable<Uint8Array>;
}

/**
 * Takes in disks as they flow, some at once; what a stream passes over is zeros, which are neither
 * read nor hashed. The first failure ends all of them.
 */
export async function ingestStreams(
  writer: SavesetWriter,
  disks: readonly StreamedDisk[],
  blockBytes: number,
  progress: JobProgress,
): Promise<void> {
  const report = new IngestReport(writer, disks, progress);
  const failed = new AbortController();
  const signal = AbortSignal.any([progress.signal, failed.signal]);
  const waiting = [...disks];
  const drain = async () => {
    for (let disk = waiting.shift(); disk !== undefined; disk = waiting.shift()) {
      signal.throwIfAborted();
      await ingestStream(writer, disk, blockBytes, { report, signal });
    }
  };
  let failure: unknown;
  const lanes = Array.from({ length: streamLimits.streamsMax }, () =>
    drain().catch((error: unknown) => {
      failure ??= error;
      failed.abort(error);
    }),
  );
  await Promise.all(lanes);
  progress.signal.throwIfAborted();
  if (failure !== undefined) throw failure instanceof Error ? failure : new Error(String(failure));
  report.tell();
}

async function ingestStream(
  writer: SavesetWriter,
  disk: StreamedDisk,
  blockBytes: number,
  { report, signal }: { readonly report: IngestReport; readonly signal: AbortSignal },
): Promise<void> {
  const { name, source, sizeBytes } = disk;
  const out = writer.disk(name, sizeBytes, source);
  const blocks = new BlockAssembler(out, blockBytes, sizeBytes, name);
  let reached = 0;
  try {
    const stream = await parseStreamOptimized(disk.download(signal), `disk ${name}`);
    if (stream.sizeBytes !== sizeBytes) {
      const told = `it is one of ${stream.sizeBytes} bytes, and not of ${sizeBytes}`;
      throw new RouseError('corrupt-data', told);
    }
    for await (const piece of stream.pieces) {
      signal.throwIfAborted();
      if (!piece.zero) await blocks.add(piece.offset, piece.data);
      const end = piece.offset + piece.length;
      if (end - reached < proxyLimits.ingestReadBytes && end < sizeBytes) continue;
      report.done(Math.max(0, end - reached));
      reached = Math.max(reached, end);
    }
    await blocks.flush();
  } catch (error) {
    throw brokenDownload(error, name);
  }
  await out.finish();
}

/** Bytes that were broken on the way may come whole the next time. */
function brokenDownload(error: unknown, name: string): unknown {
  const isBroken = isRouseError(error, 'corrupt-data') || isRouseError(error, 'unsupported-format');
  if (!isBroken) return error;
  return new RouseError(
    'hypervisor-error',
    `the download of disk ${name} is broken: ${error.message}`,
    {
      cause: error,
      advice:
        'It is tried again by itself; when it stays, look at the disk with vmkfstools -x check.',
    },
  );
}

/**
 * Makes whole blocks of grains, which may be smaller than those, with one buffer. Grains ascend as a
 * rule; one that comes late is taken when it is made of whole blocks.
 */
class BlockAssembler {
  readonly #out: DiskWriter;
  readonly #blockBytes: number;
  readonly #sizeBytes: number;
  readonly #name: string;
  readonly #buffer: Buffer;
  /** Where the buffer lies on the disk; below zero: nowhere yet. */
  #start = -1;
  readonly #touched: boolean[] = [];

  constructor(out: DiskWriter, blockBytes: number, sizeBytes: number, name: string) {
    this.#out = out;
    this.#blockBytes = blockBytes;
    this.#sizeBytes = sizeBytes;
    this.#name = name;
    this.#buffer = Buffer.alloc(Math.max(blockBytes, streamLimits.windowBytes));
  }

  async add(offset: number, data: Uint8Array): Promise<void> {
    for (let done = 0; done < data.length;) {
      const at = offset + done;
      const start = at - (at % this.#buffer.length);
      if (start < this.#start) return this.#addLate(at, data.subarray(done));
      if (start > this.#start) await this.#moveTo(start);
      const part = data.subarray(done, done + this.#buffer.length - (at - start));
      this.#buffer.set(part, at - start);
      const last = Math.floor((at - start + part.length - 1) / this.#blockBytes);
      for (let block = Math.floor((at - start) / this.#blockBytes); block <= last; block += 1) {
        this.#touched[block] = true;
      }
      done += part.length;
    }
  }

  async #addLate(offset: number, data: Uint8Array): Promise<void> {
    const end = offset + data.length;
    const isWhole = end % this.#blockBytes === 0 || end === this.#sizeBytes;
    if (offset % this.#blockBytes !== 0 || !isWhole) {
      throw new RouseError('corrupt-data', `a piece at ${offset} comes out of order`);
    }
    await this.#out.write(offset, data);
  }

  async #moveTo(start: number): Promise<void> {
    await this.flush();
    this.#start = start;
    this.#buffer.fill(0);
  }

  /** Runs of touched blocks; what lies between them is zero already. */
  async flush(): Promise<void> {
    const blocks = this.#buffer.length / this.#blockBytes;
    for (let first = 0; first < blocks; first += 1) {
      if (this.#touched[first] !== true) continue;
      let last = first;
      while (last + 1 < blocks && this.#touched[last + 1] === true) last += 1;
      const from = first * this.#blockBytes;
      const to = Math.min((last + 1) * this.#blockBytes, this.#sizeBytes - this.#start);
      if (to <= from) throw new RouseError('internal', `disk ${this.#name} ends before its blocks`);
      await this.#out.write(this.#start + from, this.#buffer.subarray(from, to));
      first = last;
    }
    this.#touched.length = 0;
  }
}

import { formatLimits } from '../limits.ts';
import { checkOutputSize, isZero, OutputFile } from './disk-output.ts';
import type { DiskOutput, OutputOptions } from './disk-output.ts';
import { checkRange } from './mapped-disk.ts';
import { qcow2Magic } from './qcow2-header.ts';

/**
 * Writes a qcow2 image, version 3, that grows as it is filled: clusters that are zero are never
 * allocated. Header and reference counts are written last, so that a half-written file is never
 * taken for an image. Layout: header, L1 table, then data and L2 tables as they come, then
 * reference count blocks and their table.
 */
export async function createQcow2Writer(
  path: string,
  sizeBytes: number,
  options: OutputOptions = {},
): Promise<DiskOutput> {
  checkOutputSize(path, sizeBytes);
  return new Qcow2Output(await OutputFile.create(path, options), sizeBytes);
}

const clusterBits = 16;
const clusterBytes = 2 ** clusterBits;
const entriesPerL2 = clusterBytes / 8;
/** 16-bit counts (refcount_order 4). */
const countsPerBlock = clusterBytes / 2;
/** Bit 63, in the upper half: exactly one reference. */
const copiedFlag = 0x80000000;

class Qcow2Output implements DiskOutput {
  readonly path: string;
  readonly sizeBytes: number;
  readonly #file: OutputFile;
  /** Cluster numbers of L2 tables, 0: none. 16 MiB for 1 PiB. */
  readonly #l1: Float64Array;
  readonly #l1Clusters: number;
  readonly #l2 = new Map<number, L2Table>();
  #nextCluster: number;
  /** Calls take turns: allocation and tables are one state. */
  #turn: Promise<void> = Promise.resolve();

  constructor(file: OutputFile, sizeBytes: number) {
    this.path = file.path;
    this.sizeBytes = sizeBytes;
    this.#file = file;
    this.#l1 = new Float64Array(Math.ceil(sizeBytes / (clusterBytes * entriesPerL2)));
    this.#l1Clusters = Math.ceil((this.#l1.length * 8) / clusterBytes);
    this.#nextCluster = 1 + this.#l1Clusters;
  }

  write(source: Uint8Array, offset: number): Promise<void> {
    checkRange(this.path, this.sizeBytes, offset, source.length);
    return this.#inTurn(() => this.#write(source, offset));
  }

  zero(offset: number, length: number): Promise<void> {
    checkRange(this.path, this.sizeBytes, offset, length);
    return this.#inTurn(() => this.#zero(offset, length));
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }

  /** Neighbouring clusters that are neighbours in the file as well are written at once. */
  async #write(source: Uint8Array, offset: number): Promise<void> {
    let run = { start: 0, end: 0, position: -1 };
    for (let at = 0; at < source.length;) {
      const within = (offset + at) % clusterBytes;
      const end = Math.min(source.length, at + clusterBytes - within);
      const position = await this.#place(offset + at, source.subarray(at, end));
      const follows = position >= 0 && position === run.position + (run.end - run.start);
      if (follows && run.position >= 0) {
        run = { ...run, end };
      } else {
        await this.#flush(source, run);
        run = { start: at, end, position };
      }
      at = end;
    }
    await this.#flush(source, run);
  }

  async #flush(
    source: Uint8Array,
    run: { readonly start: number; readonly end: number; readonly position: number },
  ): Promise<void> {
    if (run.position < 0) return;
    await this.#file.write(source.subarray(run.start, run.end), run.position);
  }

  /** Where this part of one cluster belongs in the file; -1: it is zeros and needs no place. */
  async #place(offset: number, part: Uint8Array): Promise<number> {
    const cluster = Math.floor(offset / clusterBytes);
    const within = offset % clusterBytes;
    const known = await this.#hostCluster(cluster);
    if (known !== 0) return known * clusterBytes + within;
    if (isZero(part)) return -1;
    const table = await this.#table(Math.floor(cluster / entriesPerL2), true);
    const host = this.#nextCluster++;
    table.set(cluster % entriesPerL2, host);
    return host * clusterBytes + within;
  }

  async #zero(offset: number, length: number): Promise<void> {
    const end = offset + length;
    let at = offset;
    while (at < end) {
      const cluster = Math.floor(at / clusterBytes);
      const l1Index = Math.floor(cluster / entriesPerL2);
      if (this.#l1[l1Index] === 0 && !this.#l2.has(l1Index)) {
        at = Math.min(end, (l1Index + 1) * entriesPerL2 * clusterBytes);
        continue;
      }
      const part = Math.min(end, (cluster + 1) * clusterBytes) - at;
      const host = await this.#hostCluster(cluster);
      if (host !== 0) await this.#file.clear(host * clusterBytes + (at % clusterBytes), part);
      at += part;
    }
  }

  async #hostCluster(cluster: number): Promise<number> {
    const table = await this.#table(Math.floor(cluster / entriesPerL2), false);
    return table?.get(cluster % entriesPerL2) ?? 0;
  }

  #table(l1Index: number, create: true): Promise<L2Table>;
  #table(l1Index: number, create: boolean): Promise<L2Table | undefined>;
  async #table(l1Index: number, create: boolean): Promise<L2Table | undefined> {
    const known = this.#l2.get(l1Index);
    if (known !== undefined) {
      this.#l2.delete(l1Index);
      this.#l2.set(l1Index, known);
      return known;
    }
    const stored = this.#l1[l1Index] ?? 0;
    if (stored === 0 && !create) return undefined;
    const bytes = Buffer.alloc(clusterBytes);
    if (stored === 0) this.#l1[l1Index] = this.#nextCluster++;
    else await this.#file.read(bytes, stored * clusterBytes);
    const table = new L2Table(bytes);
    this.#l2.set(l1Index, table);
    await this.#shrinkTables();
    return table;
  }

  async #shrinkTables(): Promise<void> {
    while (this.#l2.size > formatLimits.writerTablesMax) {
      const oldest = this.#l2.entries().next();
      if (oldest.done === true) return;
      const [l1Index, table] = oldest.value;
      await this.#storeTable(l1Index, table);
      this.#l2.delete(l1Index);
    }
  }

  async #storeTable(l1Index: number, table: L2Table): Promise<void> {
    if (!table.isChanged) return;
    await this.#file.write(table.bytes, (this.#l1[l1Index] ?? 0) * clusterBytes);
    table.isChanged = false;
  }

  finish(): Promise<void> {
    return this.#inTurn(async () => {
      for (const [l1Index, table] of this.#l2) await this.#storeTable(l1Index, table);
      await this.#file.write(this.#l1Bytes(), clusterBytes);
      const counts = await this.#writeCounts();
      await this.#file.truncate(this.#nextCluster * clusterBytes);
      await this.#file.sync();
      await this.#file.write(this.#header(counts), 0);
      await this.#file.finish();
    });
  }

  #l1Bytes(): Buffer {
    const bytes = Buffer.alloc(this.#l1Clusters * clusterBytes);
    this.#l1.forEach((cluster, index) => {
      if (cluster !== 0) writeEntry(bytes, index, cluster);
    });
    return bytes;
  }

  /** Every cluster has one reference; the counts count themselves. */
  async #writeCounts(): Promise<CountsPlace> {
    let blocks = 0;
    let tableClusters = 0;
    for (;;) {
      const total = this.#nextCluster + blocks + tableClusters;
      const needed = Math.ceil(total / countsPerBlock);
      const table = Math.ceil((needed * 8) / clusterBytes);
      if (needed === blocks && table === tableClusters) break;
      blocks = needed;
      tableClusters = table;
    }
    const firstBlock = this.#nextCluster;
    const total = firstBlock + blocks + tableClusters;
    const table = Buffer.alloc(tableClusters * clusterBytes);
    for (let block = 0; block < blocks; block++) {
      const bytes = Buffer.alloc(clusterBytes);
      const counted = Math.min(countsPerBlock, total - block * countsPerBlock);
      for (let i = 0; i < counted; i++) bytes.writeUInt16BE(1, i * 2);
      await this.#file.write(bytes, (firstBlock + block) * clusterBytes);
      table.writeBigUInt64BE(BigInt((firstBlock + block) * clusterBytes), block * 8);
    }
    await this.#file.write(table, (firstBlock + blocks) * clusterBytes);
    this.#nextCluster = total;
    return { position: (firstBlock + blocks) * clusterBytes, clusters: tableClusters };
  }

  #header(counts: CountsPlace): Buffer {
    const bytes = Buffer.alloc(120);
    bytes.writeUInt32BE(qcow2Magic, 0);
    bytes.writeUInt32BE(3, 4);
    bytes.writeUInt32BE(clusterBits, 20);
    bytes.writeBigUInt64BE(BigInt(this.sizeBytes), 24);
    bytes.writeUInt32BE(this.#l1.length, 36);
    bytes.writeBigUInt64BE(BigInt(clusterBytes), 40);
    bytes.writeBigUInt64BE(BigInt(counts.position), 48);
    bytes.writeUInt32BE(counts.clusters, 56);
    bytes.writeUInt32BE(4, 96);
    // Header length; behind it lies the end of the extensions: eight zero bytes.
    bytes.writeUInt32BE(112, 100);
    return bytes;
  }

  abandon(): Promise<void> {
    return this.#inTurn(() => this.#file.abandon());
  }
}

interface CountsPlace {
  readonly position: number;
  readonly clusters: number;
}

class L2Table {
  readonly bytes: Buffer;
  isChanged = false;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  get(index: number): number {
    const high = this.bytes.readUInt32BE(index * 8) & 0x00ffffff;
    return (high * 2 ** 32 + this.bytes.readUInt32BE(index * 8 + 4)) / clusterBytes;
  }

  set(index: number, cluster: number): void {
    writeEntry(this.bytes, index, cluster);
    this.isChanged = true;
  }
}

function writeEntry(bytes: Buffer, index: number, cluster: number): void {
  const position = cluster * clusterBytes;
  bytes.writeUInt32BE((Math.floor(position / 2 ** 32) | copiedFlag) >>> 0, index * 8);
  bytes.writeUInt32BE(position % 2 ** 32, index * 8 + 4);
}

/**
 * The files of a layer's log. One segment is active and grows; a spare one lies ready, so that an
 * append need not wait for a file to be created. A segment in which nothing lives is removed, and
 * its file kept to be written again (spare-files.ts). Its slot, the high bits of positions, is then
 * used again.
 */
import { RouseError } from '../errors.ts';
import type { Files, OpenFile } from '../lib/files.ts';
import type { Random } from '../lib/random.ts';
import { datastoreLimits } from '../limits.ts';
import {
  encodeSegmentHeader,
  pageBytes,
  segmentHeaderUnits,
  segmentUnits,
  unitBytes,
  type SegmentHeader,
} from './layer-format.ts';
import { zeroFlag, type Position } from './page-map.ts';
import { SpareFiles } from './spare-files.ts';

export class Segment {
  readonly header: SegmentHeader;
  readonly path: string;
  readonly file: OpenFile;
  /** The unit after the last batch. */
  endUnits: number;
  /** Up to here the file was written already; see prewriting.ts and spare-files.ts. */
  prewrittenBytes = 0;
  /** Pages whose newest bytes, and pages whose newest zeros, are recorded here. */
  livePages = 0;
  liveZeros = 0;
  lastSequence = 0;
  /** The batch that superseded its last page: once that is durable, this may go. */
  deadSince = 0;
  /** Reads under way that wait for the disk. */
  readers = 0;
  /** Some of its headers or pages cannot be read: kept while anything in it lives. */
  damaged = false;
  /** No sync of it has failed: its file may be used again. */
  trusted = true;

  constructor(header: SegmentHeader, path: string, file: OpenFile, endUnits: number) {
    this.header = header;
    this.path = path;
    this.file = file;
    this.endUnits = endUnits;
  }

  get dead(): boolean {
    return this.livePages === 0 && this.liveZeros === 0;
  }

  /** Bytes of the file without a hole. */
  get writtenBytes(): number {
    return Math.max(this.prewrittenBytes, this.endUnits * unitBytes);
  }

  /**
   * Bytes to the end of the page in which a batch ends. Where the file was written already they are
   * written with the batch: of a page that is written in part, the rest may have to be read first.
   */
  paddingAfter(endBytes: number): number {
    const padding = -endBytes & (pageBytes - 1);
    return endBytes + padding <= this.prewrittenBytes ? padding : 0;
  }
}

export function positionOf(slot: number, unit: number): Position {
  return slot * segmentUnits + unit;
}

export function slotOf(position: Position): number {
  return Math.floor((position & ~zeroFlag) / segmentUnits);
}

export function byteOffsetOf(position: Position): number {
  return ((position & ~zeroFlag) % segmentUnits) * unitBytes;
}

export function segmentName(id: number): string {
  return `segment-${String(id).padStart(12, '0')}`;
}

export class Segments {
  readonly #files: Files;
  readonly #directory: string;
  readonly #random: Random;
  readonly #endUnitsMax: number;
  readonly #slots: (Segment | undefined)[] = [];
  readonly #spareFiles: SpareFiles;
  #active: Segment | undefined;
  #spare: Segment | undefined;
  #preparing: Promise<void> | undefined;
  #nextId = 1;
  #closed = false;
  /** Whether a spare may be made before it is needed. */
  mayPrepareEarly: () => boolean = () => true;
  /** Whether files may be kept for later. */
  mayKeepFiles: () => boolean = () => true;
  /** The next segments follow a failed sync. */
  afterFailure = false;
  /** A name was created since the last sync of the directory. */
  namesUnsynced = false;
  readonly unsynced = new Set<Segment>();
  /** Behind its end may lie parts of a batch whose append failed. */
  #soiled: Segment | undefined;

  constructor(files: Files, directory: string, random: Random, segmentBytes: number) {
    this.#endUnitsMax = Math.min(segmentUnits, segmentBytes / unitBytes);
    this.#files = files;
    this.#directory = directory;
    this.#random = random;
    this.#spareFiles = new SpareFiles(files, directory);
  }

  get active(): Segment | undefined {
    return this.#active;
  }

  /** What the files take that are kept for later. */
  get spareBytes(): number {
    return this.#spareFiles.bytes;
  }

  at(position: Position): Segment | undefined {
    return this.#slots[slotOf(position)];
  }

  all(): Segment[] {
    return this.#slots.filter((segment) => segment !== undefined);
  }

  /** A segment found on disk; a newer one takes the slot of one that should be gone. */
  adopt(segment: Segment): Segment | undefined {
    const old = this.#slots[segment.header.slot];
    this.#nextId = Math.max(this.#nextId, segment.header.id + 1);
    if (old !== undefined && old.header.id > segment.header.id) return segment;
    this.#slots[segment.header.slot] = segment;
    return old;
  }

  /** Files whose number must not be used again. */
  skipId(id: number): void {
    this.#nextId = Math.max(this.#nextId, id + 1);
  }

  /** Room for `units` in the active segment, or in the spare one, which becomes active. */
  roomFor(units: number): Segment | undefined {
    if (this.#active !== undefined && this.#active.endUnits + units <= this.#endUnitsMax) {
      if (this.#active.endUnits > this.#endUnitsMax / 2) this.#prepareSoon();
      return this.#active;
    }
    if (this.#spare === undefined) return undefined;
    this.#active = this.#spare;
    this.#spare = undefined;
    this.namesUnsynced = true;
    return this.#active;
  }

  /** An append failed, and may have left the beginning of a batch behind the segment's end. */
  soil(segment: Segment): void {
    this.#soiled = segment;
  }

  /**
   * To be called before anything is appended. The number of a batch that failed is given again: what
   * is left of it must be gone, as durably as what comes next, or the next opening would take it
   * for a batch that counts. Throws when it cannot be wiped out; then nothing may be appended.
   */
  tidy(): void {
    const segment = this.#soiled;
    if (segment === undefined) return;
    const endBytes = segment.endUnits * unitBytes;
    if (segment.file.readNow(Buffer.alloc(1), endBytes) !== 0) {
      segment.file.writeNow([Buffer.alloc(unitBytes)], endBytes);
      this.unsynced.add(segment);
    }
    this.#soiled = undefined;
  }

  /** Nothing more is appended to the active segment, nor to a spare from before. */
  async retireActive(): Promise<void> {
    this.#active = undefined;
    await this.#preparing?.catch(() => undefined);
    const spare = this.#spare;
    this.#spare = undefined;
    if (spare !== undefined) await this.remove(spare);
  }

  /** Makes a spare segment, if there is none. Rejects with `disk-full` and the like. */
  async prepare(): Promise<void> {
    if (this.#spare !== undefined) return;
    this.#preparing ??= this.#create().finally(() => {
      this.#preparing = undefined;
    });
    await this.#preparing;
  }

  /** Removes a segment in which nothing lives. Its name may come back after a power cut. */
  async remove(segment: Segment): Promise<void> {
    if (this.#slots[segment.header.slot] === segment) {
      this.#slots[segment.header.slot] = undefined;
    }
    this.unsynced.delete(segment);
    if (this.#soiled === segment) this.#soiled = undefined;
    await segment.file.close();
    const { header, path, writtenBytes } = segment;
    if (this.#isWorthKeeping(segment)) await this.#spareFiles.keep(path, header.id, writtenBytes);
    else await this.#files.remove(path);
  }

  #isWorthKeeping({ trusted, damaged, writtenBytes }: Segment): boolean {
    if (this.#closed || this.#spareFiles.isFull || !this.mayKeepFiles()) return false;
    return trusted && !damaged && writtenBytes >= (this.#endUnitsMax * unitBytes) / 2;
  }

  /** Whether files take room that nothing needs yet. */
  get hasSpareFiles(): boolean {
    return this.#spareFiles.bytes > 0 || (this.#spare?.prewrittenBytes ?? 0) > 0;
  }

  /** Removes the files that are kept for later, and the one that lies ready if it was such a file. */
  async dropSpareFiles(): Promise<void> {
    const spare = this.#spare;
    if (spare !== undefined && spare.prewrittenBytes > 0) {
      this.#spare = undefined;
      await this.remove(spare);
    }
    await this.#spareFiles.drop();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#preparing?.catch(() => undefined);
    const spare = this.#spare;
    this.#spare = undefined;
    if (spare !== undefined) await this.remove(spare).catch(() => undefined);
    await this.#spareFiles.drop().catch(() => undefined);
    for (const segment of this.all()) await segment.file.close();
  }

  #prepareSoon(): void {
    if (this.#spare !== undefined || this.#preparing !== undefined || this.#closed) return;
    if (!this.mayPrepareEarly()) return;
    // Whoever needs the segment asks again and gets the error.
    this.prepare().catch(() => undefined);
  }

  async #create(): Promise<void> {
    const slot = this.#freeSlot();
    const id = this.#nextId++;
    const nonce = this.#random.bytes(8).readBigUInt64LE();
    const header = { id, slot, nonce, afterFailure: this.afterFailure };
    const path = `${this.#directory}/${segmentName(id)}`;
    const bytes = encodeSegmentHeader(header);
    const used = await this.#spareFiles.use(path, bytes);
    const file = used?.file ?? (await this.#createFile(path, bytes));
    const segment = new Segment(header, path, file, segmentHeaderUnits);
    segment.prewrittenBytes = used?.writtenBytes ?? 0;
    this.#slots[slot] = segment;
    this.#spare = segment;
  }

  async #createFile(path: string, header: Buffer): Promise<OpenFile> {
    const file = await this.#files.open(path, 'create');
    try {
      file.writeNow([header], 0);
    } catch (error) {
      await file.close();
      await this.#files.remove(path);
      throw error;
    }
    return file;
  }

  #freeSlot(): number {
    let slot = this.#slots.indexOf(undefined);
    if (slot < 0) slot = this.#slots.length;
    if (slot >= datastoreLimits.segmentsMax) {
      throw new RouseError('disk-full', `${this.#directory}: the write layer's log is full`, {
        advice: 'Relocate the machine, or seal its writes into a new saveset.',
      });
    }
    return slot;
  }
}

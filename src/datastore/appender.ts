/**
 * Turns waiting writes into batches at the end of the log and points the maps at them, in one
 * synchronous step: whoever reads the map finds only what has been appended.
 */
import { crc32 } from 'node:zlib';
import { datastoreLimits } from '../limits.ts';
import type { NfsTime } from '../nfs/file-system.ts';
import {
  batchUnits,
  encodeBatchHeader,
  pageBytes,
  unitBytes,
  unitsPerPage,
  type PageExtent,
} from './layer-format.ts';
import { absent, zeroFlag, type PageMap, type Position } from './page-map.ts';
import { positionOf, type Segment, type Segments } from './segments.ts';
import type { TimeSource } from './time-source.ts';

interface Waiting {
  readonly disk: number;
  readonly page: number;
  readonly data: Buffer;
}

/** A page to be copied, if it still lies where it was found. */
export interface Move {
  readonly disk: number;
  readonly page: number;
  readonly from: Position;
  /** undefined: zeros. */
  readonly data: Buffer | undefined;
  readonly checksum: number;
}

const zeroPage = Buffer.alloc(pageBytes);
const writePagesMax = 256;

export class Appender {
  readonly #segments: Segments;
  readonly #times: TimeSource;
  readonly modified: (NfsTime | undefined)[];
  /** The last batch appended. */
  sequence: number;
  #queue: Waiting[] = [];
  #appendedBytes = 0;
  #building = new BatchBuilder();

  constructor(
    segments: Segments,
    start: { readonly sequence: number; readonly modified: readonly (NfsTime | undefined)[] },
    times: TimeSource,
  ) {
    this.#segments = segments;
    this.#times = times;
    this.sequence = start.sequence;
    this.modified = [...start.modified];
  }

  get pending(): boolean {
    return this.#queue.length > 0;
  }

  add(disk: number, page: number, data: Buffer): void {
    if (data.length <= writePagesMax * pageBytes) {
      this.#queue.push({ disk, page, data });
      return;
    }
    for (let at = 0; at < data.length; at += writePagesMax * pageBytes) {
      const part = data.subarray(at, at + writePagesMax * pageBytes);
      this.#queue.push({ disk, page: page + at / pageBytes, data: part });
    }
  }

  drop(): void {
    this.#queue = [];
  }

  takeAppendedBytes(): number {
    const bytes = this.#appendedBytes;
    this.#appendedBytes = 0;
    return bytes;
  }

  /** One batch of what waits. false: no segment has room; prepare one first. */
  append(maps: readonly PageMap[], syncedSequence: number): boolean {
    this.#segments.tidy();
    let pages = 0;
    let taken = 0;
    for (const { data } of this.#queue) {
      const more = data.length / pageBytes;
      const full = pages + more > datastoreLimits.batchPagesMax;
      if (taken > 0 && (full || pages + more > datastoreLimits.batchExtentsMax)) break;
      pages += more;
      taken++;
    }
    // Each page may become an extent of its own: room for the largest header.
    const segment = this.#segments.roomFor(batchUnits(pages, pages));
    if (segment === undefined) return false;
    const builder = this.#building;
    builder.clear();
    for (let i = 0; i < taken; i++) {
      const waiting = this.#queue[i];
      if (waiting !== undefined) builder.add(waiting.disk, waiting.page, waiting.data);
    }
    this.#write(builder, segment, maps, syncedSequence, this.#times.next());
    if (taken === this.#queue.length) this.#queue = [];
    else this.#queue.splice(0, taken);
    return true;
  }

  /** Copies pages to the end of the log; those that changed meanwhile are left out. */
  appendMoves(moves: readonly Move[], maps: readonly PageMap[], syncedSequence: number): boolean {
    this.#segments.tidy();
    const segment = this.#segments.roomFor(batchUnits(moves.length, moves.length));
    if (segment === undefined) return false;
    const builder = this.#building;
    builder.clear();
    for (const { disk, page, from, data, checksum } of moves) {
      const map = maps[disk];
      const index = map?.find(page) ?? -1;
      if (index < 0 || map?.positionAt(index) !== from) continue;
      if (data === undefined) builder.addZero(disk, page);
      else builder.addPage(disk, page, data, checksum);
    }
    if (builder.extents.length > 0) {
      this.#write(builder, segment, maps, syncedSequence, undefined);
    }
    return true;
  }

  #write(
    builder: BatchBuilder,
    segment: Segment,
    maps: readonly PageMap[],
    syncedSequence: number,
    now: NfsTime | undefined,
  ): void {
    const { extents } = builder;
    const checksums = Uint32Array.from(builder.checksums);
    const sequence = this.sequence + 1;
    // A copy is no write: the disk keeps its time.
    const time = now ?? this.modified[extents[0]?.disk ?? 0] ?? { seconds: 0, nanoseconds: 0 };
    const batch = { sequence, syncedSequence, time, extents, checksums };
    const header = encodeBatchHeader(batch, segment.header.nonce);
    const start = segment.endUnits;
    const units = header.length / unitBytes + checksums.length * unitsPerPage;
    const padding = segment.paddingAfter((start + units) * unitBytes);
    try {
      const buffers = [header, ...builder.buffers, zeroPage.subarray(0, padding)];
      segment.file.writeNow(buffers, start * unitBytes);
    } catch (error) {
      this.#segments.soil(segment);
      throw error;
    }
    this.#segments.unsynced.add(segment);
    this.sequence = sequence;
    segment.endUnits = start + units;
    segment.lastSequence = sequence;
    this.#appendedBytes += units * unitBytes;
    this.#apply(segment, start, header.length / unitBytes, extents, checksums, maps);
    if (now !== undefined) for (const { disk } of extents) this.modified[disk] = now;
  }

  #apply(
    segment: Segment,
    start: number,
    headerUnits: number,
    extents: readonly PageExtent[],
    checksums: Uint32Array,
    maps: readonly PageMap[],
  ): void {
    const { slot } = segment.header;
    const zeros = (zeroFlag | positionOf(slot, start)) >>> 0;
    let position = positionOf(slot, start + headerUnits);
    let withBytes = 0;
    for (const { disk, firstPage, pages, zero } of extents) {
      const map = maps[disk];
      if (map === undefined) continue;
      for (let page = firstPage; page < firstPage + pages; page++) {
        const old = zero
          ? map.set(page, zeros, 0)
          : map.set(page, position, checksums[withBytes++] ?? 0);
        if (zero) segment.liveZeros++;
        else {
          segment.livePages++;
          position += unitsPerPage;
        }
        if (old !== absent) this.#release(old);
      }
    }
  }

  #release(position: Position): void {
    const segment = this.#segments.at(position);
    if (segment === undefined) return;
    if (position >= zeroFlag) segment.liveZeros--;
    else segment.livePages--;
    if (segment.dead) segment.deadSince = this.sequence;
  }
}

/** Extents, checksums and buffers of one batch; neighbours become one extent. */
class BatchBuilder {
  extents: PageExtent[] = [];
  checksums: number[] = [];
  buffers: Buffer[] = [];

  clear(): void {
    this.extents = [];
    this.checksums = [];
    this.buffers = [];
  }

  add(disk: number, firstPage: number, data: Buffer): void {
    if (data.length === pageBytes) {
      if (isZero(data)) this.addZero(disk, firstPage);
      else this.addPage(disk, firstPage, data, crc32(data));
      return;
    }
    let from = 0;
    for (let at = 0; at < data.length; at += pageBytes) {
      const page = data.subarray(at, at + pageBytes);
      const number = firstPage + at / pageBytes;
      if (isZero(page)) {
        if (at > from) this.buffers.push(data.subarray(from, at));
        from = at + pageBytes;
        this.addZero(disk, number);
      } else {
        this.#extend(disk, number, false);
        this.checksums.push(crc32(page));
      }
    }
    if (from < data.length) this.buffers.push(from === 0 ? data : data.subarray(from));
  }

  addPage(disk: number, page: number, data: Buffer, checksum: number): void {
    this.#extend(disk, page, false);
    this.checksums.push(checksum);
    this.buffers.push(data);
  }

  addZero(disk: number, page: number): void {
    this.#extend(disk, page, true);
  }

  #extend(disk: number, page: number, zero: boolean): void {
    const at = this.extents.length - 1;
    const last = this.extents[at];
    const follows =
      last !== undefined &&
      last.disk === disk &&
      last.zero === zero &&
      last.firstPage + last.pages === page;
    if (follows) this.extents[at] = { ...last, pages: last.pages + 1 };
    else this.extents.push({ disk, firstPage: page, pages: 1, zero });
  }
}

function isZero(page: Buffer): boolean {
  return page[0] === 0 && page[pageBytes - 1] === 0 && page.equals(zeroPage);
}

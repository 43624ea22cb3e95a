import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';
import type { Extent, ReadableDisk } from '../lib/disk.ts';
import type { ImageFile } from './image-file.ts';
import type { TableCache } from './table-cache.ts';

/** Where a stretch of a disk comes from. */
export type Segment =
  | { readonly kind: 'zero'; readonly length: number }
  | {
      readonly kind: 'file';
      readonly length: number;
      readonly file: ImageFile;
      readonly position: number;
    }
  | {
      /** A backing disk. */
      readonly kind: 'disk';
      readonly length: number;
      readonly disk: ReadableDisk;
      readonly offset: number;
    }
  | {
      /** A compressed cluster or grain, of which bytes from `within` on are meant. */
      readonly kind: 'packed';
      readonly length: number;
      readonly piece: Piece;
      readonly within: number;
    };

export interface Piece {
  /** Unique within one disk. */
  readonly key: number;
  readonly sizeBytes: number;
  unpack(): Promise<Uint8Array>;
}

/** A table that has to be in memory before the mapping can go on. */
export interface TableNeeded {
  readonly kind: 'table';
  readonly file: ImageFile;
  readonly position: number;
}

/** One format's map of a disk. `length` of a segment is between 1 and `lengthMax`. */
export interface DiskMap {
  lookup(offset: number, lengthMax: number): Segment | TableNeeded;
}

/** A disk that is read through a map. Reads may run in parallel. */
export class MappedDisk implements ReadableDisk {
  readonly sizeBytes: number;
  readonly #map: DiskMap;
  readonly #tables: TableCache;
  readonly #close: () => Promise<void>;
  readonly #unpacked = new Map<number, Promise<Uint8Array>>();
  readonly #name: string;

  constructor(spec: {
    readonly name: string;
    readonly sizeBytes: number;
    readonly map: DiskMap;
    readonly tables: TableCache;
    readonly close: () => Promise<void>;
  }) {
    this.#name = spec.name;
    this.sizeBytes = spec.sizeBytes;
    this.#map = spec.map;
    this.#tables = spec.tables;
    this.#close = spec.close;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    checkRange(this.#name, this.sizeBytes, offset, target.length);
    const pending = new Set<Promise<void>>();
    const failures: unknown[] = [];
    try {
      let done = 0;
      while (done < target.length && failures.length === 0) {
        const segment = await this.#segment(offset + done, target.length - done);
        const part = target.subarray(done, done + segment.length);
        done += segment.length;
        if (segment.kind === 'zero') {
          part.fill(0);
          continue;
        }
        const work: Promise<void> = this.#fetch(segment, part)
          .catch((error: unknown) => void failures.push(error))
          .finally(() => pending.delete(work));
        pending.add(work);
        if (pending.size >= formatLimits.fetchingMax) await Promise.race(pending);
      }
    } finally {
      // Nothing may write to `target` once this has rejected: it is the caller's again.
      await Promise.all(pending);
    }
    if (failures.length > 0) throw failures[0];
  }

  async extents(offset: number, length: number): Promise<readonly Extent[]> {
    checkRange(this.#name, this.sizeBytes, offset, length);
    const list = new ExtentList();
    let at = offset;
    while (at < offset + length) {
      const segment = await this.#segment(at, offset + length - at);
      if (segment.kind === 'file') {
        list.shifted(segment.file.extents(segment.position, segment.length), at - segment.position);
      } else if (segment.kind === 'disk') {
        const below = await segment.disk.extents(segment.offset, segment.length);
        list.shifted(below, at - segment.offset);
      } else {
        list.push({ offset: at, length: segment.length, zero: segment.kind === 'zero' });
      }
      at += segment.length;
    }
    return list.extents;
  }

  close(): Promise<void> {
    return this.#close();
  }

  /** The next segment, with all that follow it seamlessly in the same file or disk. */
  async #segment(offset: number, lengthMax: number): Promise<Segment> {
    let segment = await this.#lookup(offset, lengthMax);
    while (segment.length < lengthMax && segment.kind !== 'packed') {
      const next = this.#map.lookup(offset + segment.length, lengthMax - segment.length);
      const joined = join(segment, next);
      if (joined === undefined) break;
      segment = joined;
    }
    return segment;
  }

  async #lookup(offset: number, lengthMax: number): Promise<Segment> {
    for (;;) {
      const found = this.#map.lookup(offset, lengthMax);
      if (found.kind !== 'table') return found;
      await this.#tables.load(found.file, found.position);
    }
  }

  async #fetch(segment: Exclude<Segment, { kind: 'zero' }>, part: Uint8Array): Promise<void> {
    switch (segment.kind) {
      case 'file':
        return segment.file.read(part, segment.position);
      case 'disk':
        return segment.disk.read(part, segment.offset);
      case 'packed': {
        const whole = await this.#unpack(segment.piece, segment.length);
        part.set(whole.subarray(segment.within, segment.within + segment.length));
      }
    }
  }

  /** Pieces that are read in parts are kept a while; those read whole are not. */
  #unpack(piece: Piece, wantedBytes: number): Promise<Uint8Array> {
    const known = this.#unpacked.get(piece.key);
    if (known !== undefined) return known;
    const unpacking = piece.unpack();
    if (wantedBytes === piece.sizeBytes) return unpacking;
    this.#unpacked.set(piece.key, unpacking);
    unpacking.catch(() => this.#unpacked.delete(piece.key));
    if (this.#unpacked.size > formatLimits.unpackedPiecesMax) {
      const oldest = this.#unpacked.keys().next();
      if (oldest.done !== true) this.#unpacked.delete(oldest.value);
    }
    return unpacking;
  }
}

function join(first: Segment, second: Segment | TableNeeded): Segment | undefined {
  const length = first.length + (second.kind === 'table' ? 0 : second.length);
  if (first.kind === 'zero' && second.kind === 'zero') return { kind: 'zero', length };
  if (first.kind === 'file' && second.kind === 'file') {
    const adjacent =
      first.file === second.file && first.position + first.length === second.position;
    return adjacent ? { ...first, length } : undefined;
  }
  if (first.kind === 'disk' && second.kind === 'disk') {
    const adjacent = first.disk === second.disk && first.offset + first.length === second.offset;
    return adjacent ? { ...first, length } : undefined;
  }
  return undefined;
}

/** Extents in order, neighbours of one kind made one. */
export class ExtentList {
  readonly extents: Extent[] = [];

  push(extent: Extent): void {
    if (extent.length === 0) return;
    const last = this.extents.at(-1);
    if (last !== undefined && last.zero === extent.zero) {
      this.extents[this.extents.length - 1] = { ...last, length: last.length + extent.length };
    } else {
      this.extents.push(extent);
    }
  }

  shifted(extents: readonly Extent[], by: number): void {
    for (const extent of extents) this.push({ ...extent, offset: extent.offset + by });
  }
}

export function checkRange(name: string, sizeBytes: number, offset: number, length: number): void {
  if (
    !Number.isSafeInteger(offset) ||
    !Number.isSafeInteger(length) ||
    offset < 0 ||
    length < 0 ||
    offset + length > sizeBytes
  ) {
    throw new RouseError(
      'bad-request',
      `${name}: ${length} bytes at ${offset} lie outside of the disk's ${sizeBytes}`,
    );
  }
}

/** Disks are whole sectors: what is missing of the last one reads as zeros. */
export function wholeSectors(bytes: number): number {
  return Math.ceil(bytes / 512) * 512;
}

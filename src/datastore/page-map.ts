/**
 * Where the newest bytes of each written page of one disk lie in the log: page -> position and
 * checksum, 8 bytes a page in groups of 16, and 11 bytes a group to find it. Memory is in
 * proportion to what was written; nothing depends on the size of the disk. Groups are found in 64
 * small hash tables, so that none takes long to grow. `snapshot` costs nothing at once: tables and
 * chunks are copied when they change after it.
 */

/** Position of a page: the unit in the log in 31 bits; the top bit: reads as zeros, no bytes. */
export type Position = number;

/** Never the position of a page: unit 0 of a segment is its header. */
export const absent: Position = 0;
export const zeroFlag = 0x8000_0000;

const groupPages = 16;
const chunkGroups = 64;
const chunkPages = chunkGroups * groupPages;
const shardCount = 64;

interface Chunk {
  readonly positions: Uint32Array;
  readonly checksums: Uint32Array;
  shared: boolean;
}

/** Open addressing; keys are group + 1, 0 is free. */
interface Shard {
  keys: Uint32Array;
  values: Uint32Array;
  used: number;
  shared: boolean;
}

export interface PageMapView {
  /** Pages in the map. */
  readonly pages: number;
  /** The index of a page for `positionAt` and `checksumAt`, or -1. */
  find(page: number): number;
  positionAt(index: number): Position;
  checksumAt(index: number): number;
  /** Numbers of all groups of 16 pages that hold something, ascending. */
  groups(): Float64Array;
}

export class PageMap implements PageMapView {
  #shards: (Shard | undefined)[];
  #chunks: Chunk[];
  #groupCount: number;
  #pages: number;
  #lastGroup = -1;
  #lastSlab = 0;

  constructor(from?: PageMap) {
    this.#shards = from === undefined ? Array.from({ length: shardCount }) : [...from.#shards];
    this.#chunks = from === undefined ? [] : [...from.#chunks];
    this.#groupCount = from === undefined ? 0 : from.#groupCount;
    this.#pages = from === undefined ? 0 : from.#pages;
  }

  get pages(): number {
    return this.#pages;
  }

  /** The map as it is now, for as long as it is kept. */
  snapshot(): PageMapView {
    for (const shard of this.#shards) if (shard !== undefined) shard.shared = true;
    for (const chunk of this.#chunks) chunk.shared = true;
    return new PageMap(this);
  }

  find(page: number): number {
    const group = Math.floor(page / groupPages);
    if (group === this.#lastGroup) return this.#lastSlab * groupPages + (page % groupPages);
    const slab = this.#slabOf(group);
    if (slab < 0) return -1;
    this.#lastGroup = group;
    this.#lastSlab = slab;
    return slab * groupPages + (page % groupPages);
  }

  positionAt(index: number): Position {
    const chunk = this.#chunks[Math.floor(index / chunkPages)];
    return chunk?.positions[index % chunkPages] ?? absent;
  }

  checksumAt(index: number): number {
    const chunk = this.#chunks[Math.floor(index / chunkPages)];
    return chunk?.checksums[index % chunkPages] ?? 0;
  }

  /** Answers the position that it replaces. */
  set(page: number, position: Position, checksum: number): Position {
    let index = this.find(page);
    if (index < 0) index = this.#add(Math.floor(page / groupPages)) + (page % groupPages);
    const chunk = this.#writableChunk(Math.floor(index / chunkPages));
    const at = index % chunkPages;
    const old = chunk.positions[at] ?? absent;
    chunk.positions[at] = position;
    chunk.checksums[at] = checksum;
    if (old === absent) this.#pages++;
    return old;
  }

  groups(): Float64Array {
    const groups = new Float64Array(this.#groupCount);
    let at = 0;
    for (const shard of this.#shards) {
      if (shard === undefined) continue;
      for (const key of shard.keys) if (key !== 0) groups[at++] = key - 1;
    }
    return groups.sort();
  }

  #slabOf(group: number): number {
    const hash = hashOf(group);
    const shard = this.#shards[hash % shardCount];
    if (shard === undefined) return -1;
    const at = slotFor(shard.keys, group + 1, hash);
    return shard.keys[at] === 0 ? -1 : (shard.values[at] ?? -1);
  }

  /** The index of the first page of a new group. */
  #add(group: number): number {
    const slab = this.#groupCount++;
    if (slab % chunkGroups === 0) this.#chunks.push(newChunk());
    const hash = hashOf(group);
    const shard = this.#writableShard(hash % shardCount);
    if ((shard.used + 1) * 4 > shard.keys.length * 3) grow(shard);
    const at = slotFor(shard.keys, group + 1, hash);
    shard.keys[at] = group + 1;
    shard.values[at] = slab;
    shard.used++;
    return slab * groupPages;
  }

  #writableChunk(at: number): Chunk {
    const chunk = this.#chunks[at];
    if (chunk === undefined) throw new RangeError(`page map has no chunk ${at}`);
    if (!chunk.shared) return chunk;
    const copy = {
      positions: chunk.positions.slice(),
      checksums: chunk.checksums.slice(),
      shared: false,
    };
    this.#chunks[at] = copy;
    return copy;
  }

  #writableShard(at: number): Shard {
    const shard = this.#shards[at];
    if (shard !== undefined && !shard.shared) return shard;
    const copy =
      shard === undefined
        ? { keys: new Uint32Array(8), values: new Uint32Array(8), used: 0, shared: false }
        : { ...shard, keys: shard.keys.slice(), values: shard.values.slice(), shared: false };
    this.#shards[at] = copy;
    return copy;
  }
}

export const pagesPerGroup = groupPages;

function newChunk(): Chunk {
  return {
    positions: new Uint32Array(chunkPages),
    checksums: new Uint32Array(chunkPages),
    shared: false,
  };
}

/** Knuth's multiplicative hash, mixed so that the low bits (the shard) are good too. */
function hashOf(group: number): number {
  const hash = Math.imul(group ^ (group >>> 15), 0x9e37_79b1);
  return (hash ^ (hash >>> 15)) >>> 0;
}

/** Where `key` is, or the free place for it. */
function slotFor(keys: Uint32Array, key: number, hash: number): number {
  const mask = keys.length - 1;
  let at = Math.floor(hash / shardCount) & mask;
  for (;;) {
    const found = keys[at];
    if (found === key || found === 0) return at;
    at = (at + 1) & mask;
  }
}

function grow(shard: Shard): void {
  const { keys, values } = shard;
  shard.keys = new Uint32Array(keys.length * 2);
  shard.values = new Uint32Array(keys.length * 2);
  for (let i = 0; i < keys.length; i++) {
    const key = keys[i] ?? 0;
    if (key === 0) continue;
    const at = slotFor(shard.keys, key, hashOf(key - 1));
    shard.keys[at] = key;
    shard.values[at] = values[i] ?? 0;
  }
}

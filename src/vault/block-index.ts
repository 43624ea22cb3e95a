/**
 * Block id -> place, for tens of millions of blocks in little memory. An entry is five 32-bit words
 * (20 bytes): 96 bits of the id, which a keyed hash makes uniform and unforgeable, then
 *
 *   word 3  low 24 bits: number of the pack; high 8 bits: low 8 bits of offset / 8
 *   word 4  low 17 bits: rest of offset / 8; high 15 bits: length in units of 64 bytes, rounded up
 *
 * so packs end at 256 MiB, there are at most 16 million of them, and records at 2 MiB. Two of 2^35
 * blocks (1 PiB) share 96 bits with a chance of one in 10^8; a record carries the whole id, so
 * even then a read fails rather than answering another block.
 *
 * Entries are kept sorted in shards by their leading bits; a shard is found by shift, an entry by
 * interpolation. Shards double when they grow beyond some thousand entries, so an insertion moves a
 * few KiB at most. Everything is synchronous: no reader ever sees a half-made change.
 */
const wordsPerEntry = 5;
export const indexEntryBytes = wordsPerEntry * 4;
const shardEntriesMax = 1536;
const shardBitsMin = 6;
const shardBitsMax = 20;

export const indexPackMax = 2 ** 24 - 1;

/** Where a record lies: the length is rounded up, never beyond the pack's end. */
export interface BlockPlace {
  pack: number;
  offset: number;
  length: number;
}

export class BlockIndex {
  #bits = shardBitsMin;
  #shards: Uint32Array[] = [];
  #counts: Uint32Array;
  #size = 0;
  #words = 0;

  constructor() {
    this.#counts = new Uint32Array(2 ** this.#bits);
    for (let i = 0; i < this.#counts.length; i++) this.#shards.push(new Uint32Array(0));
  }

  get size(): number {
    return this.#size;
  }

  /** Bytes of all arrays, their slack included. */
  get memoryBytes(): number {
    return this.#words * 4 + this.#shards.length * shardOverheadBytes + this.#counts.byteLength;
  }

  /** Finds the block whose id stands at `at` of `bytes` and fills `place`; false: not here. */
  find(bytes: Uint8Array, at: number, place: BlockPlace): boolean {
    const w0 = word(bytes, at);
    const w1 = word(bytes, at + 4);
    const w2 = word(bytes, at + 8);
    const number = w0 >>> (32 - this.#bits);
    const shard = this.#shards[number] as Uint32Array;
    const i = this.#search(shard, this.#counts[number] as number, w0, w1, w2);
    if (i < 0) return false;
    const w3 = shard[i * wordsPerEntry + 3] as number;
    const w4 = shard[i * wordsPerEntry + 4] as number;
    place.pack = w3 & 0xffffff;
    place.offset = (((w4 & 0x1ffff) << 8) | (w3 >>> 24)) * 8;
    place.length = (w4 >>> 17) * 64;
    return true;
  }

  /** The entry's position, or -1 - the position where it would have to be inserted. */
  #search(shard: Uint32Array, count: number, w0: number, w1: number, w2: number): number {
    const span = 2 ** (32 - this.#bits);
    let i = Math.floor(((w0 & (span - 1)) / span) * count);
    if (i > 0) i = Math.min(i, count - 1);
    while (i > 0 && compare(shard, i, w0, w1, w2) > 0) i--;
    for (; i < count; i++) {
      const order = compare(shard, i, w0, w1, w2);
      if (order === 0) return i;
      if (order > 0) break;
    }
    return -1 - i;
  }

  /** False: the block was known already, and its old place stays. */
  insert(bytes: Uint8Array, at: number, place: BlockPlace): boolean {
    const units = Math.ceil(place.length / 64);
    return this.insertWords(
      word(bytes, at),
      word(bytes, at + 4),
      word(bytes, at + 8),
      (place.pack | ((place.offset / 8) << 24)) >>> 0,
      ((place.offset >>> 11) | (units << 17)) >>> 0,
    );
  }

  insertWords(w0: number, w1: number, w2: number, w3: number, w4: number): boolean {
    let number = w0 >>> (32 - this.#bits);
    let shard = this.#shards[number] as Uint32Array;
    const count = this.#counts[number] as number;
    const found = this.#search(shard, count, w0, w1, w2);
    if (found >= 0) return false;
    if (count >= shardEntriesMax && this.#bits < shardBitsMax) {
      this.#double();
      return this.insertWords(w0, w1, w2, w3, w4);
    }
    number = w0 >>> (32 - this.#bits);
    if ((count + 1) * wordsPerEntry > shard.length) shard = this.#grow(number, count);
    const at = (-1 - found) * wordsPerEntry;
    shard.copyWithin(at + wordsPerEntry, at, count * wordsPerEntry);
    shard[at] = w0;
    shard[at + 1] = w1;
    shard[at + 2] = w2;
    shard[at + 3] = w3;
    shard[at + 4] = w4;
    this.#counts[number] = count + 1;
    this.#size++;
    return true;
  }

  /** One sixteenth of slack: on average 3 % of memory. */
  #grow(number: number, count: number): Uint32Array {
    const old = this.#shards[number] as Uint32Array;
    const room = count + Math.max(4, count >>> 4);
    const shard = new Uint32Array(room * wordsPerEntry);
    shard.set(old.subarray(0, count * wordsPerEntry));
    this.#words += shard.length - old.length;
    this.#shards[number] = shard;
    return shard;
  }

  /** Twice the shards: each is cut where the next bit of the ids turns to 1. */
  #double(): void {
    const bits = this.#bits + 1;
    const shards: Uint32Array[] = [];
    const counts = new Uint32Array(2 ** bits);
    let words = 0;
    for (let number = 0; number < this.#shards.length; number++) {
      const shard = this.#shards[number] as Uint32Array;
      const count = this.#counts[number] as number;
      const bit = 2 ** (32 - bits);
      let cut = 0;
      while (cut < count && ((shard[cut * wordsPerEntry] as number) & bit) === 0) cut++;
      shards.push(shard.slice(0, cut * wordsPerEntry));
      shards.push(shard.slice(cut * wordsPerEntry, count * wordsPerEntry));
      counts[number * 2] = cut;
      counts[number * 2 + 1] = count - cut;
      words += count * wordsPerEntry;
    }
    this.#bits = bits;
    this.#shards = shards;
    this.#counts = counts;
    this.#words = words;
  }

  clear(): void {
    this.#bits = shardBitsMin;
    this.#counts = new Uint32Array(2 ** this.#bits);
    this.#shards = Array.from(this.#counts, () => new Uint32Array(0));
    this.#size = 0;
    this.#words = 0;
  }

  /** How many slices `slice` has at this moment; entries come in order of their ids. */
  get slices(): number {
    return 2 ** shardBitsMin;
  }

  /**
   * All entries of the `number`-th part of the ids (of `slices`) as words, copied: the same
   * ranges whatever has been inserted meanwhile.
   */
  slice(number: number): Uint32Array {
    const per = 2 ** (this.#bits - shardBitsMin);
    const first = number * per;
    let count = 0;
    for (let i = first; i < first + per; i++) count += this.#counts[i] as number;
    const words = new Uint32Array(count * wordsPerEntry);
    let at = 0;
    for (let i = first; i < first + per; i++) {
      const used = (this.#counts[i] as number) * wordsPerEntry;
      words.set((this.#shards[i] as Uint32Array).subarray(0, used), at);
      at += used;
    }
    return words;
  }

  /**
   * Takes sorted entries into an empty index without a search for each: for loading. Entries out
   * of order are refused by answering false.
   */
  load(words: Uint32Array, total: number): boolean {
    if (this.#size === 0 && total > 0) this.#prepare(total);
    let at = 0;
    while (at < words.length) {
      const number = (words[at] as number) >>> (32 - this.#bits);
      let end = at;
      while (end < words.length && (words[end] as number) >>> (32 - this.#bits) === number) {
        if (end > at && !isAfter(words, end)) return false;
        end += wordsPerEntry;
      }
      if (!this.#append(number, words.subarray(at, end))) return false;
      at = end;
    }
    return true;
  }

  #prepare(total: number): void {
    let bits = shardBitsMin;
    while (total / 2 ** bits > shardEntriesMax * 0.7 && bits < shardBitsMax) bits++;
    this.#bits = bits;
    this.#counts = new Uint32Array(2 ** bits);
    this.#shards = Array.from(this.#counts, () => new Uint32Array(0));
    this.#words = 0;
  }

  #append(number: number, words: Uint32Array): boolean {
    const count = this.#counts[number] as number;
    const old = this.#shards[number] as Uint32Array;
    if (count > 0) {
      const last = old.subarray((count - 1) * wordsPerEntry, count * wordsPerEntry);
      if (compare(last, 0, words[0] as number, words[1] as number, words[2] as number) >= 0)
        return false;
    }
    const shard = new Uint32Array(count * wordsPerEntry + words.length);
    shard.set(old.subarray(0, count * wordsPerEntry));
    shard.set(words, count * wordsPerEntry);
    this.#words += shard.length - old.length;
    this.#shards[number] = shard;
    this.#counts[number] = count + words.length / wordsPerEntry;
    this.#size += words.length / wordsPerEntry;
    return true;
  }
}

/** V8 takes about this much for a typed array and its buffer. */
const shardOverheadBytes = 240;

function isAfter(words: Uint32Array, at: number): boolean {
  const before = at - wordsPerEntry;
  for (let i = 0; i < 3; i++) {
    const a = words[before + i] as number;
    const b = words[at + i] as number;
    if (a !== b) return a < b;
  }
  return false;
}

/** Of the entry against the words: negative, 0 or positive. */
function compare(shard: Uint32Array, i: number, w0: number, w1: number, w2: number): number {
  const at = i * wordsPerEntry;
  const a0 = shard[at] as number;
  if (a0 !== w0) return a0 < w0 ? -1 : 1;
  const a1 = shard[at + 1] as number;
  if (a1 !== w1) return a1 < w1 ? -1 : 1;
  const a2 = shard[at + 2] as number;
  if (a2 !== w2) return a2 < w2 ? -1 : 1;
  return 0;
}

/** Big-endian, so that the order of words is the order of ids. */
function word(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] as number) << 24) |
      ((bytes[at + 1] as number) << 16) |
      ((bytes[at + 2] as number) << 8) |
      (bytes[at + 3] as number)) >>>
    0
  );
}

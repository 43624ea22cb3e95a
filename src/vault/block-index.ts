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
 * Entries are kept in shards by their leading bits. A shard is one sorted sequence, in chunks that
 * are given out of large slabs (no memory is moved, freed or fragmented as it grows), and a few
 * newest entries, sorted too, which are merged into it when they are enough. A shard is found by
 * shift, an entry by interpolation: hashes are uniform. When shards get large their number
 * doubles. Everything is synchronous: no reader ever sees a half-made change.
 */
const wordsPerEntry = 5;
export const indexEntryBytes = wordsPerEntry * 4;

const chunkEntries = 256;
const chunkWords = chunkEntries * wordsPerEntry;
/** 1.25 MiB: the system gives such pieces as they are, and only their touched pages count. */
const chunksPerSlab = 256;
const recentMax = 128;
const shardEntriesMax = 16_384;
const shardBitsMin = 6;
const shardBitsMax = 20;

export const indexPackMax = 2 ** 24 - 1;

/** Where a record lies: the length is rounded up, never beyond the pack's end. */
export interface BlockPlace {
  pack: number;
  offset: number;
  length: number;
}

/** The words of one entry, reused. */
interface Words {
  w0: number;
  w1: number;
  w2: number;
}

interface Shard {
  /** Chunks of the sorted sequence, in order. */
  readonly chunks: number[];
  count: number;
  /** Newest entries, sorted; made with the first of them. */
  recent: Uint32Array | undefined;
  recentCount: number;
}

export class BlockIndex {
  #bits = shardBitsMin;
  /** Values of an id's first word in one shard: `2 ** n` is computed by the C library, each time. */
  #span = 2 ** (32 - shardBitsMin);
  #shards: Shard[] = emptyShards(shardBitsMin);
  readonly #slabs: Uint32Array[] = [];
  readonly #freeChunks: number[] = [];
  #recents = 0;
  #size = 0;
  readonly #wanted: Words = { w0: 0, w1: 0, w2: 0 };

  get size(): number {
    return this.#size;
  }

  /** Bytes of all arrays, their slack included. */
  get memoryBytes(): number {
    const slabs = this.#slabs.length * chunksPerSlab * chunkWords * 4;
    const recents = this.#recents * (recentMax * indexEntryBytes + arrayOverheadBytes);
    const lists = (this.#size / chunkEntries) * 8 + this.#shards.length * arrayOverheadBytes;
    return Math.round(slabs + recents + lists);
  }

  /** Finds the block whose id stands at `at` of `bytes` and fills `place`; false: not here. */
  find(bytes: Uint8Array, at: number, place: BlockPlace): boolean {
    const wanted = this.#wanted;
    wanted.w0 = word(bytes, at);
    wanted.w1 = word(bytes, at + 4);
    wanted.w2 = word(bytes, at + 8);
    const shard = this.#shardOf(wanted.w0);
    const i = this.#search(shard, wanted, shard.count);
    if (i >= 0) {
      readPlace(this.#slab(shard, i), this.#base(shard, i), place);
      return true;
    }
    const recent = searchRecent(shard, wanted);
    if (recent < 0) return false;
    readPlace(shard.recent as Uint32Array, recent * wordsPerEntry, place);
    return true;
  }

  #shardOf(w0: number): Shard {
    return this.#shards[w0 >>> (32 - this.#bits)] as Shard;
  }

  #slab(shard: Shard, i: number): Uint32Array {
    const chunk = shard.chunks[(i / chunkEntries) | 0] as number;
    return this.#slabs[(chunk / chunksPerSlab) | 0] as Uint32Array;
  }

  #base(shard: Shard, i: number): number {
    const chunk = shard.chunks[(i / chunkEntries) | 0] as number;
    return (chunk % chunksPerSlab) * chunkWords + (i % chunkEntries) * wordsPerEntry;
  }

  /** The entry's place among the first `count`, or -1 - the place where it would be. */
  #search(shard: Shard, wanted: Words, count: number, total = count): number {
    if (count === 0) return -1;
    const density = total / this.#span;
    let i = Math.min(count - 1, ((wanted.w0 & (this.#span - 1)) * density) | 0);
    for (let round = 0; round < 3; round++) {
      const here = this.#slab(shard, i)[this.#base(shard, i)] as number;
      const step = ((wanted.w0 - here) * density) | 0;
      if (step === 0) break;
      i = Math.min(count - 1, Math.max(0, i + step));
    }
    while (i > 0 && compare(this.#slab(shard, i), this.#base(shard, i), wanted) > 0) i--;
    for (; i < count; i++) {
      const order = compare(this.#slab(shard, i), this.#base(shard, i), wanted);
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
    const wanted = this.#wanted;
    wanted.w0 = w0;
    wanted.w1 = w1;
    wanted.w2 = w2;
    let shard = this.#shardOf(w0);
    if (this.#search(shard, wanted, shard.count) >= 0 || searchRecent(shard, wanted) >= 0)
      return false;
    if (shard.recentCount === recentMax) {
      this.#merge(shard);
      if (shard.count > shardEntriesMax && this.#bits < shardBitsMax) this.#double();
      shard = this.#shardOf(w0);
    }
    const at = (-1 - searchRecent(shard, wanted)) * wordsPerEntry;
    const recent = (shard.recent ??= this.#newRecent());
    recent.copyWithin(at + wordsPerEntry, at, shard.recentCount * wordsPerEntry);
    recent[at] = w0;
    recent[at + 1] = w1;
    recent[at + 2] = w2;
    recent[at + 3] = w3;
    recent[at + 4] = w4;
    shard.recentCount++;
    this.#size++;
    return true;
  }

  #newRecent(): Uint32Array {
    this.#recents++;
    return new Uint32Array(recentMax * wordsPerEntry);
  }

  #newChunk(): number {
    const free = this.#freeChunks.pop();
    if (free !== undefined) return free;
    const first = this.#slabs.length * chunksPerSlab;
    this.#slabs.push(new Uint32Array(chunksPerSlab * chunkWords));
    for (let i = chunksPerSlab - 1; i > 0; i--) this.#freeChunks.push(first + i);
    return first;
  }

  #setCount(shard: Shard, count: number): void {
    const chunks = Math.ceil(count / chunkEntries);
    while (shard.chunks.length < chunks) shard.chunks.push(this.#newChunk());
    while (shard.chunks.length > chunks) this.#freeChunks.push(shard.chunks.pop() as number);
    shard.count = count;
  }

  /** Backwards and in place: every entry moves up by the number of new ones below it. */
  #merge(shard: Shard): void {
    const { recent, recentCount } = shard;
    if (recent === undefined || recentCount === 0) return;
    const total = shard.count;
    let end = total;
    this.#setCount(shard, shard.count + recentCount);
    const { w0, w1, w2 } = this.#wanted;
    for (let i = recentCount - 1; i >= 0; i--) {
      const from = i * wordsPerEntry;
      const wanted = this.#wanted;
      wanted.w0 = recent[from] as number;
      wanted.w1 = recent[from + 1] as number;
      wanted.w2 = recent[from + 2] as number;
      const start = -1 - this.#search(shard, wanted, end, total);
      this.#moveUp(shard, start, end, i + 1);
      const to = start + i;
      copyWords(recent, from, this.#slab(shard, to), this.#base(shard, to));
      end = start;
    }
    Object.assign(this.#wanted, { w0, w1, w2 });
    shard.recentCount = 0;
  }

  /** Moves the entries [start, end) by `by` places, from the last one on, as many as fit at once. */
  #moveUp(shard: Shard, start: number, end: number, by: number): void {
    for (let i = end; i > start;) {
      const inSource = ((i - 1) % chunkEntries) + 1;
      const inTarget = ((i + by - 1) % chunkEntries) + 1;
      const run = Math.min(i - start, inSource, inTarget);
      i -= run;
      const source = this.#slab(shard, i);
      const target = this.#slab(shard, i + by);
      const at = this.#base(shard, i);
      const to = this.#base(shard, i + by);
      if (source === target) source.copyWithin(to, at, at + run * wordsPerEntry);
      else target.set(source.subarray(at, at + run * wordsPerEntry), to);
    }
  }

  /**
   * Twice the shards: each is cut where the next bit of the ids turns to 1. At 33 million entries
   * this takes some tenths of a second, once; at two million a sixteenth of that.
   */
  #double(): void {
    const bits = this.#bits + 1;
    const shards: Shard[] = [];
    for (const low of this.#shards) {
      this.#merge(low);
      const cut = this.#cutOf(low, 2 ** (32 - bits));
      const high: Shard = { chunks: [], count: 0, recent: undefined, recentCount: 0 };
      this.#setCount(high, low.count - cut);
      for (let i = cut; i < low.count; i++)
        copyWords(
          this.#slab(low, i),
          this.#base(low, i),
          this.#slab(high, i - cut),
          this.#base(high, i - cut),
        );
      this.#setCount(low, cut);
      shards.push(low, high);
    }
    this.#cutInto(bits, shards);
  }

  #cutInto(bits: number, shards: Shard[]): void {
    this.#bits = bits;
    this.#span = 2 ** (32 - bits);
    this.#shards = shards;
  }

  /** The first entry whose id has this bit. */
  #cutOf(shard: Shard, bit: number): number {
    let low = 0;
    let high = shard.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const w0 = this.#slab(shard, middle)[this.#base(shard, middle)] as number;
      if ((w0 & bit) === 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  clear(): void {
    this.#cutInto(shardBitsMin, emptyShards(shardBitsMin));
    this.#slabs.length = 0;
    this.#freeChunks.length = 0;
    this.#recents = 0;
    this.#size = 0;
  }

  /** How many slices `slice` has; entries come in order of their ids. */
  get slices(): number {
    return 2 ** shardBitsMin;
  }

  /**
   * All entries of the `number`-th part of the ids (of `slices`) as words, copied: the same
   * ranges whatever has been inserted meanwhile.
   */
  slice(number: number): Uint32Array {
    const per = 2 ** (this.#bits - shardBitsMin);
    const shards = this.#shards.slice(number * per, (number + 1) * per);
    for (const shard of shards) this.#merge(shard);
    const total = shards.reduce((sum, shard) => sum + shard.count, 0);
    const words = new Uint32Array(total * wordsPerEntry);
    let at = 0;
    for (const shard of shards)
      for (let i = 0; i < shard.count; i += chunkEntries) {
        const base = this.#base(shard, i);
        const length = Math.min(chunkEntries, shard.count - i) * wordsPerEntry;
        words.set(this.#slab(shard, i).subarray(base, base + length), at);
        at += length;
      }
    return words;
  }

  /**
   * Takes sorted entries that come after all that are here, without a search for each: for
   * loading. `total` is how many there will be. Entries out of order are refused: false.
   */
  load(words: Uint32Array, total: number): boolean {
    if (this.#size === 0) this.#prepare(total);
    for (let at = 0; at < words.length; at += wordsPerEntry) {
      const shard = this.#shardOf(words[at] as number);
      const last = shard.count - 1;
      const isNext =
        shard.recentCount === 0 &&
        (last < 0 || isAbove(words, at, this.#slab(shard, last), this.#base(shard, last)));
      if (!isNext) return false;
      this.#setCount(shard, shard.count + 1);
      copyWords(words, at, this.#slab(shard, last + 1), this.#base(shard, last + 1));
      this.#size++;
    }
    return true;
  }

  #prepare(total: number): void {
    let bits = shardBitsMin;
    while (total / 2 ** bits > shardEntriesMax * 0.7 && bits < shardBitsMax) bits++;
    this.#cutInto(bits, emptyShards(bits));
  }
}

/** V8 takes about this much for an array and its buffer. */
const arrayOverheadBytes = 240;

function emptyShards(bits: number): Shard[] {
  return Array.from({ length: 2 ** bits }, () => ({
    chunks: [],
    count: 0,
    recent: undefined,
    recentCount: 0,
  }));
}

/** By halves: the newest entries of a shard are few. */
function searchRecent(shard: Shard, wanted: Words): number {
  const { recent } = shard;
  if (recent === undefined) return -1;
  let low = 0;
  let high = shard.recentCount;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const order = compare(recent, middle * wordsPerEntry, wanted);
    if (order === 0) return middle;
    if (order < 0) low = middle + 1;
    else high = middle;
  }
  return -1 - low;
}

function readPlace(words: Uint32Array, at: number, place: BlockPlace): void {
  const w3 = words[at + 3] as number;
  const w4 = words[at + 4] as number;
  place.pack = w3 & 0xffffff;
  place.offset = (((w4 & 0x1ffff) << 8) | (w3 >>> 24)) * 8;
  place.length = (w4 >>> 17) * 64;
}

function copyWords(from: Uint32Array, at: number, to: Uint32Array, target: number): void {
  to[target] = from[at] as number;
  to[target + 1] = from[at + 1] as number;
  to[target + 2] = from[at + 2] as number;
  to[target + 3] = from[at + 3] as number;
  to[target + 4] = from[at + 4] as number;
}

/** Of the entry against the words: negative, 0 or positive. */
function compare(entries: Uint32Array, at: number, wanted: Words): number {
  const a0 = entries[at] as number;
  if (a0 !== wanted.w0) return a0 < wanted.w0 ? -1 : 1;
  const a1 = entries[at + 1] as number;
  if (a1 !== wanted.w1) return a1 < wanted.w1 ? -1 : 1;
  const a2 = entries[at + 2] as number;
  if (a2 !== wanted.w2) return a2 < wanted.w2 ? -1 : 1;
  return 0;
}

function isAbove(a: Uint32Array, at: number, b: Uint32Array, bt: number): boolean {
  if (a[at] !== b[bt]) return (a[at] as number) > (b[bt] as number);
  if (a[at + 1] !== b[bt + 1]) return (a[at + 1] as number) > (b[bt + 1] as number);
  return (a[at + 2] as number) > (b[bt + 2] as number);
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

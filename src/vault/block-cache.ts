import { hugePageBuffer } from '../lib/libc.ts';

/**
 * Unpacked blocks, data and tree nodes alike, in one slab of fixed size that all disks and clones
 * of the vault share. Everything is synchronous: a slot found is valid until the next call that
 * may take one. Whoever keeps a slot across turns keeps its generation as well and compares.
 */
export class BlockCache {
  readonly blockBytes: number;
  readonly slots: number;
  /** The slab, as bytes and as words; slot n begins at n * blockBytes. */
  readonly bytes: Buffer;
  readonly words: Int32Array;
  /** Counts how often a slot was given to another block. */
  readonly generations: Uint32Array;
  /** Bytes of a slot that hold its block: random readers unpack no more than they need. */
  readonly filled: Uint32Array;
  hits = 0;
  misses = 0;
  readonly #ids: Int32Array;
  readonly #heads: Int32Array;
  readonly #next: Int32Array;
  readonly #references: Uint8Array;
  readonly #occupied: Uint8Array;
  #hand = 0;
  #used = 0;

  constructor(blockBytes: number, boundBytes: number, slotsMin: number) {
    this.blockBytes = blockBytes;
    this.slots = Math.max(slotsMin, Math.floor(boundBytes / blockBytes));
    this.bytes = hugePageBuffer(this.slots * blockBytes);
    const { buffer, byteOffset, length } = this.bytes;
    this.words = new Int32Array(buffer, byteOffset, length / 4);
    this.generations = new Uint32Array(this.slots);
    this.filled = new Uint32Array(this.slots);
    this.#ids = new Int32Array(this.slots * 8);
    this.#heads = new Int32Array(2 ** Math.ceil(Math.log2(this.slots * 1.5))).fill(-1);
    this.#next = new Int32Array(this.slots).fill(-1);
    this.#references = new Uint8Array(this.slots);
    this.#occupied = new Uint8Array(this.slots);
  }

  get usedBytes(): number {
    return this.#used * this.blockBytes;
  }

  /** Whatever comes in pushes something out. */
  get isFull(): boolean {
    return this.#used === this.slots;
  }

  /** The slot of the block, or -1. */
  find(id: IdCell): number {
    const words = id.words;
    const ids = this.#ids;
    let slot = this.#heads[this.#bucket(words[7] as number)] as number;
    while (slot >= 0) {
      const at = slot * 8;
      if (
        ids[at] === words[0] &&
        ids[at + 1] === words[1] &&
        ids[at + 2] === words[2] &&
        ids[at + 3] === words[3] &&
        ids[at + 4] === words[4] &&
        ids[at + 5] === words[5] &&
        ids[at + 6] === words[6] &&
        ids[at + 7] === words[7]
      )
        return slot;
      slot = this.#next[slot] as number;
    }
    return -1;
  }

  #bucket(word: number): number {
    return word & (this.#heads.length - 1);
  }

  /** The slot was useful: it survives one more round of the hand (a node: three more). */
  touch(slot: number, weight: number): void {
    if ((this.#references[slot] as number) < weight) this.#references[slot] = weight;
  }

  /** A slot to be filled; it holds nothing until `keep`. */
  take(): number {
    for (;;) {
      const slot = this.#hand;
      this.#hand = slot + 1 === this.slots ? 0 : slot + 1;
      const references = this.#references[slot] as number;
      if (references > 0) {
        this.#references[slot] = references - 1;
        continue;
      }
      if (this.#occupied[slot] === 1) this.#forget(slot);
      this.generations[slot] = (this.generations[slot] as number) + 1;
      return slot;
    }
  }

  /** What is in the slot is no longer the block's. */
  drop(slot: number): void {
    this.#forget(slot);
    this.#references[slot] = 0;
    this.generations[slot] = (this.generations[slot] as number) + 1;
  }

  #forget(slot: number): void {
    const bucket = this.#bucket(this.#ids[slot * 8 + 7] as number);
    let at = this.#heads[bucket] as number;
    if (at === slot) {
      this.#heads[bucket] = this.#next[slot] as number;
    } else {
      while (this.#next[at] !== slot) at = this.#next[at] as number;
      this.#next[at] = this.#next[slot] as number;
    }
    this.#occupied[slot] = 0;
    this.#used--;
  }

  /** The slot now holds this block. */
  keep(slot: number, id: IdCell, weight: number): void {
    this.#ids.set(id.words, slot * 8);
    const bucket = this.#bucket(id.words[7] as number);
    this.#next[slot] = this.#heads[bucket] as number;
    this.#heads[bucket] = slot;
    this.#occupied[slot] = 1;
    this.#references[slot] = weight;
    this.#used++;
  }

  slot(number: number): Buffer {
    return this.bytes.subarray(number * this.blockBytes, (number + 1) * this.blockBytes);
  }

  clear(): void {
    for (let slot = 0; slot < this.slots; slot++) {
      if (this.#occupied[slot] === 1) this.#forget(slot);
      this.generations[slot] = (this.generations[slot] as number) + 1;
    }
  }
}

/** One id as bytes and as words over the same memory; reused, so that lookups allocate nothing. */
export class IdCell {
  readonly bytes: Buffer;
  readonly words: Int32Array;

  constructor(id?: Uint8Array) {
    this.bytes = Buffer.from(new ArrayBuffer(32));
    this.words = new Int32Array(this.bytes.buffer, 0, 8);
    if (id !== undefined) this.bytes.set(id);
  }

  /** Copies the id at word `at`; false when it is the id of zeros. */
  load(from: Int32Array, at: number): boolean {
    let any = 0;
    for (let i = 0; i < 8; i++) {
      const word = from[at + i] as number;
      this.words[i] = word;
      any |= word;
    }
    return any !== 0;
  }

  get isZero(): boolean {
    return this.words.every((word) => word === 0);
  }

  copy(): IdCell {
    return new IdCell(this.bytes);
  }
}

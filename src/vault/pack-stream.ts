import type { BlobReader } from '../blobs/port.ts';
import type { BlockPlace } from './block-index.ts';
import { idBytes } from './hash.ts';
import { recordBytes, recordHeaderBytes } from './record.ts';

/**
 * Packs hold the blocks of a disk in the order in which they were taken in. So whoever reads a disk
 * from front to end finds the next record right behind the last one: several are read at once, and
 * the index is asked only where that order breaks. What is given out is not checked yet.
 */
export class PackStream {
  readonly #bytes: Buffer;
  /** What `#bytes` holds: this range of this pack. -1: nothing. */
  #pack = -1;
  #start = 0;
  #end = 0;
  /** Where in `#bytes` the record behind the last one begins. */
  #next = 0;

  /** At least the largest record. */
  constructor(sizeBytes: number) {
    this.#bytes = Buffer.allocUnsafeSlow(sizeBytes);
  }

  /** The record behind the last one if it is this block's and was read whole; else undefined. */
  following(id: Buffer): Buffer | undefined {
    const at = this.#next;
    const room = this.#end - this.#start - at;
    if (this.#pack < 0 || room < recordHeaderBytes) return undefined;
    if (this.#bytes.compare(id, 0, idBytes, at + 24, at + 24 + idBytes) !== 0) return undefined;
    const length = recordBytes(this.#bytes.readUInt32LE(at + 8));
    return length <= room ? this.#give(at, length) : undefined;
  }

  /** The record at this place, with what follows it; undefined: the disk has to be waited for. */
  at(place: BlockPlace, reader: BlobReader): Buffer | undefined {
    const within =
      place.pack === this.#pack &&
      place.offset >= this.#start &&
      place.offset + place.length <= this.#end;
    if (!within && !this.#read(place, reader)) return undefined;
    const at = place.offset - this.#start;
    // The index rounds lengths up; the record itself says where the next one begins.
    const length = recordBytes(this.#bytes.readUInt32LE(at + 8));
    return this.#give(at, Math.min(length, this.#end - this.#start - at));
  }

  #read(place: BlockPlace, reader: BlobReader): boolean {
    this.forget();
    const most = Math.min(this.#bytes.length, reader.sizeBytes - place.offset);
    let length = most;
    if (!reader.readNow(this.#bytes.subarray(0, length), place.offset)) {
      // Not all of it is in memory: perhaps what is wanted is.
      length = Math.min(place.length, most);
      if (!reader.readNow(this.#bytes.subarray(0, length), place.offset)) return false;
    }
    if (length < recordHeaderBytes) return false;
    this.#pack = place.pack;
    this.#start = place.offset;
    this.#end = place.offset + length;
    return true;
  }

  #give(at: number, length: number): Buffer {
    this.#next = at + length;
    return this.#bytes.subarray(at, at + length);
  }

  forget(): void {
    this.#pack = -1;
    this.#start = 0;
    this.#end = 0;
    this.#next = 0;
  }
}

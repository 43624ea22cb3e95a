import { RouseError } from '../errors.ts';
import type { Extent, WritableDisk } from '../lib/disk.ts';

/** A disk in memory, for tests: pages of zeros are holes. */
export class MemoryDisk implements WritableDisk {
  readonly bytes: Buffer;
  syncs = 0;
  /** Every later request fails with it. */
  failure: RouseError | undefined;

  constructor(content: Uint8Array) {
    this.bytes = Buffer.from(content);
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    this.#check(offset, target.length);
    target.set(this.bytes.subarray(offset, offset + target.length));
  }

  async extents(offset: number, length: number): Promise<readonly Extent[]> {
    this.#check(offset, length);
    const list: Extent[] = [];
    for (let at = offset; at < offset + length;) {
      const end = Math.min(offset + length, (Math.floor(at / pageBytes) + 1) * pageBytes);
      const zero = this.bytes.subarray(at, end).every((byte) => byte === 0);
      const last = list.at(-1);
      if (last?.zero === zero) list[list.length - 1] = { ...last, length: end - last.offset };
      else list.push({ offset: at, length: end - at, zero });
      at = end;
    }
    return list;
  }

  async write(source: Uint8Array, offset: number): Promise<void> {
    this.#check(offset, source.length);
    this.bytes.set(source, offset);
  }

  async zero(offset: number, length: number): Promise<void> {
    this.#check(offset, length);
    this.bytes.fill(0, offset, offset + length);
  }

  async sync(): Promise<void> {
    if (this.failure !== undefined) throw this.failure;
    this.syncs++;
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #check(offset: number, length: number): void {
    if (this.failure !== undefined) throw this.failure;
    if (offset >= 0 && offset + length <= this.bytes.length) return;
    throw new RouseError('bad-request', `memory disk: ${length} bytes at ${offset}`);
  }
}

const pageBytes = 4096;

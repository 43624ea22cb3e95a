import { RouseError } from '../errors.ts';
import type { Extent } from '../lib/disk.ts';
import type { DiskRoot, VaultDisk } from '../vault/api.ts';

/**
 * A disk of a vault in memory. `cold`: asked before each `readNow`; true sends the reader the long
 * way. `badRanges` fail with `corrupt-data`, as a bad block does.
 */
export class MemoryVaultDisk implements VaultDisk {
  readonly root: DiskRoot;
  readonly sizeBytes: number;
  readonly badRanges: { readonly offset: number; readonly length: number }[] = [];
  readonly #fill: (target: Uint8Array, offset: number) => void;
  readonly #cold: () => boolean;

  constructor(
    sizeBytes: number,
    fill: (target: Uint8Array, offset: number) => void = (target) => target.fill(0),
    cold: () => boolean = () => false,
  ) {
    this.sizeBytes = sizeBytes;
    this.root = { hash: '', depth: 0, sizeBytes };
    this.#fill = fill;
    this.#cold = cold;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    await new Promise<void>((resolve) => setImmediate(resolve));
    this.#read(target, offset);
  }

  readNow(target: Uint8Array, offset: number): boolean {
    if (this.#cold()) return false;
    this.#read(target, offset);
    return true;
  }

  async extents(offset: number, length: number): Promise<readonly Extent[]> {
    return [{ offset, length, zero: false }];
  }

  async close(): Promise<void> {}

  #read(target: Uint8Array, offset: number): void {
    const end = offset + target.length;
    if (end > this.sizeBytes) throw new RangeError(`read to ${end} of ${this.sizeBytes}`);
    for (const bad of this.badRanges) {
      if (offset < bad.offset + bad.length && end > bad.offset) {
        throw new RouseError('corrupt-data', `block at ${bad.offset} is damaged`);
      }
    }
    this.#fill(target, offset);
  }
}

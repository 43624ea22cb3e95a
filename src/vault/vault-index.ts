import { RouseError } from '../errors.ts';
import type { BlobStat } from '../blobs/port.ts';
import { vaultLimits } from '../limits.ts';
import { BlockIndex, indexPackMax, type BlockPlace } from './block-index.ts';
import type { IndexFiles, KnownPack } from './index-files.ts';
import type { PackEntry } from './pack.ts';

/**
 * Which packs there are, and which block lies where: the index in memory, its numbers of packs, and
 * its files. Only durable packs come in here, whole, by `addPack`.
 */
export class VaultIndex {
  #blocks = new BlockIndex();
  readonly #files: IndexFiles;
  #packs: KnownPack[] = [];
  #numbers = new Map<string, number>();
  /** The first pack that no run on disk knows. */
  #firstUnsaved = 0;
  #saving: Promise<void> | undefined;
  #storedBytes = 0;

  constructor(files: IndexFiles) {
    this.#files = files;
  }

  get blocks(): BlockIndex {
    return this.#blocks;
  }

  get packs(): readonly KnownPack[] {
    return this.#packs;
  }

  get storedBytes(): number {
    return this.#storedBytes;
  }

  knows(name: string): boolean {
    return this.#numbers.has(name);
  }

  packName(number: number): string {
    return this.#packs[number]?.name ?? `number ${number}`;
  }

  find(bytes: Uint8Array, at: number, place: BlockPlace): boolean {
    return this.#blocks.find(bytes, at, place);
  }

  async load(): Promise<void> {
    await this.#files.load(this.#blocks, { numberOf: (pack) => this.#number(pack) });
    this.#firstUnsaved = this.#packs.length;
  }

  #number(pack: KnownPack): number {
    const known = this.#numbers.get(pack.name);
    if (known !== undefined) return known;
    const number = this.#packs.length;
    if (number > indexPackMax)
      throw new RouseError('quota-exceeded', `the vault has ${number} packs, the most it can have`);
    this.#packs.push(pack);
    this.#numbers.set(pack.name, number);
    this.#storedBytes += pack.sizeBytes;
    return number;
  }

  /** What differs between the packs that we know and those in the store. */
  compare(present: readonly BlobStat[], nameOf: (blob: string) => string) {
    const sizes = new Map(present.map((blob) => [nameOf(blob.name), blob.sizeBytes]));
    const lost = this.#packs.filter((pack) => sizes.get(pack.name) !== pack.sizeBytes);
    const unknown = [...sizes].filter(([name]) => !this.#numbers.has(name));
    return { lost, unknown: unknown.map(([name, sizeBytes]) => ({ name, sizeBytes })) };
  }

  /** The pack is durable: its blocks can be found from now on. */
  addPack(pack: KnownPack, entries: readonly PackEntry[]): void {
    const place: BlockPlace = { pack: this.#number(pack), offset: 0, length: 0 };
    for (const entry of entries) {
      place.offset = entry.offset;
      place.length = entry.length;
      this.#blocks.insert(entry.id, 0, place);
    }
    if (this.#isTracking) this.#unsaved.push(unsavedEntries(entries));
  }

  /** For each pack from `#firstUnsaved` its entries. */
  #unsaved: Buffer[] = [];
  #isTracking = true;

  get #unsavedBytes(): number {
    return this.#unsaved.reduce((sum, entries) => sum + entries.length, 0);
  }

  get shouldSave(): boolean {
    return this.#unsavedBytes >= vaultLimits.indexPendingMax * unsavedBytes;
  }

  /** What is known now is on disk when it resolves. One saving runs at a time. */
  async save(): Promise<void> {
    while (this.#saving !== undefined) await this.#saving.catch(() => undefined);
    if (this.#unsaved.length === 0) return;
    this.#saving = this.#saveNow();
    try {
      await this.#saving;
    } finally {
      this.#saving = undefined;
    }
  }

  async #saveNow(): Promise<void> {
    const unsaved = this.#unsaved;
    const first = this.#firstUnsaved;
    const packs = this.#packs.slice(first, first + unsaved.length);
    this.#unsaved = [];
    this.#firstUnsaved = first + unsaved.length;
    try {
      if (this.#files.needsBase(vaultLimits.indexRunsMax))
        await this.#files.rewrite(this.#blocks, this.#packs.slice());
      else await this.#files.append(packs, entryWords(unsaved));
    } catch (error) {
      this.#unsaved = [...unsaved, ...this.#unsaved];
      this.#firstUnsaved = first;
      throw error;
    }
  }

  /**
   * An empty index to be filled from the packs' tables while this one goes on answering. It keeps
   * the numbers of packs, since reads under way hold them; it costs as much memory once more.
   */
  successor(): VaultIndex {
    const next = new VaultIndex(this.#files);
    for (const pack of this.#packs) next.#number(pack);
    next.#isTracking = false;
    return next;
  }

  /** Becomes what `successor` was filled to be, in memory at once and then on disk. */
  async adopt(next: VaultIndex): Promise<void> {
    while (this.#saving !== undefined) await this.#saving.catch(() => undefined);
    this.#blocks = next.#blocks;
    this.#packs = next.#packs;
    this.#numbers = next.#numbers;
    this.#storedBytes = next.#storedBytes;
    this.#unsaved = [];
    this.#firstUnsaved = this.#packs.length;
    this.#saving = this.#files.rewrite(this.#blocks, this.#packs.slice());
    try {
      await this.#saving;
    } finally {
      this.#saving = undefined;
    }
  }

  /** Forgets everything, also on disk. */
  async clear(): Promise<void> {
    while (this.#saving !== undefined) await this.#saving.catch(() => undefined);
    await this.#files.clear();
    this.#blocks.clear();
    this.#packs = [];
    this.#numbers = new Map();
    this.#storedBytes = 0;
    this.#unsaved = [];
    this.#firstUnsaved = 0;
  }

  get memoryBytes(): number {
    return this.#blocks.memoryBytes + this.#packs.length * 200 + this.#unsavedBytes;
  }
}

/** An entry that waits for the next run: the part of its id that the index keeps, where, how long. */
const unsavedBytes = 20;

function unsavedEntries(entries: readonly PackEntry[]): Buffer {
  const bytes = Buffer.allocUnsafeSlow(entries.length * unsavedBytes);
  entries.forEach(({ id, offset, length }, i) => {
    const at = i * unsavedBytes;
    id.copy(bytes, at, 0, 12);
    bytes.writeUInt32LE(offset, at + 12);
    bytes.writeUInt32LE(length, at + 16);
  });
  return bytes;
}

/** As the index keeps them, the packs numbered from 0. */
function entryWords(unsaved: readonly Buffer[]): Uint32Array {
  const sorted = new BlockIndex();
  unsaved.forEach((bytes, pack) => {
    for (let at = 0; at < bytes.length; at += unsavedBytes) {
      const [offset, length] = [bytes.readUInt32LE(at + 12), bytes.readUInt32LE(at + 16)];
      sorted.insert(bytes, at, { pack, offset, length });
    }
  });
  const slices = Array.from({ length: sorted.slices }, (_, i) => sorted.slice(i));
  const words = new Uint32Array(sorted.size * 5);
  let end = 0;
  for (const slice of slices) {
    words.set(slice, end);
    end += slice.length;
  }
  return words;
}

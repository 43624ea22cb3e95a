import { RouseError } from '../errors.ts';
import type { BlobReader, BlobStore } from '../blobs/port.ts';
import { names } from './format.ts';

interface Open {
  readonly pack: number;
  readonly reader: BlobReader;
  users: number;
  wasUsed: boolean;
}

/** Packs kept open for reading, a bounded number of them; the least used are closed. */
export class PackReaders {
  readonly #store: BlobStore;
  readonly #nameOf: (pack: number) => string;
  readonly #openMax: number;
  readonly #open = new Map<number, Open>();
  readonly #opening = new Map<number, Promise<Open>>();
  #isClosed = false;

  constructor(store: BlobStore, nameOf: (pack: number) => string, openMax: number) {
    this.#store = store;
    this.#nameOf = nameOf;
    this.#openMax = openMax;
  }

  /** The reader if it is open; to be used at once, not kept. */
  now(pack: number): BlobReader | undefined {
    const open = this.#open.get(pack);
    if (open === undefined) return undefined;
    open.wasUsed = true;
    return open.reader;
  }

  /** Reads with the pack held open. */
  async use<T>(pack: number, work: (reader: BlobReader) => Promise<T>): Promise<T> {
    const open = this.#open.get(pack) ?? (await this.#openPack(pack));
    open.users++;
    open.wasUsed = true;
    try {
      return await work(open.reader);
    } finally {
      open.users--;
    }
  }

  #openPack(pack: number): Promise<Open> {
    const under = this.#opening.get(pack);
    if (under !== undefined) return under;
    const opening = this.#openAnew(pack).finally(() => this.#opening.delete(pack));
    this.#opening.set(pack, opening);
    return opening;
  }

  async #openAnew(pack: number): Promise<Open> {
    await this.#makeRoom();
    if (this.#isClosed) throw new RouseError('wrong-state', 'the vault is closed');
    const reader = await this.#store.open(names.pack(this.#nameOf(pack)));
    const open = { pack, reader, users: 0, wasUsed: true };
    this.#open.set(pack, open);
    return open;
  }

  /** Second chance, from the longest open; those in use stay. */
  async #makeRoom(): Promise<void> {
    for (const open of this.#open.values()) {
      if (this.#open.size < this.#openMax) return;
      if (open.users > 0) continue;
      this.#open.delete(open.pack);
      if (open.wasUsed) {
        open.wasUsed = false;
        this.#open.set(open.pack, open);
      } else {
        await open.reader.close();
      }
    }
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await Promise.allSettled(this.#opening.values());
    const all = [...this.#open.values()];
    this.#open.clear();
    for (const open of all) await open.reader.close();
  }
}

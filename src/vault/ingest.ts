import { RouseError } from '../errors.ts';
import { vaultLimits } from '../limits.ts';
import type { BlockPlace } from './block-index.ts';
import { codecs, type CodecName } from './codecs.ts';
import { idKey, keyedHash, type HashBlock } from './hash.ts';
import { inlineEngine, workerEngine, type IngestEngine, type SharedSlab } from './ingest-engine.ts';
import { newSlabMemory, skip, SlabViews } from './ingest-slab.ts';
import type { PackWriter } from './pack-writer.ts';
import { encodeRecord, recordBytesMax } from './record.ts';
import type { VaultIndex } from './vault-index.ts';

/** What hears where a block went; called in the order in which blocks were added. */
export interface BlockSink {
  readonly codec: CodecName;
  /** `storedBytes`: its record, 0 when the vault had the block. */
  stored(block: number, id: Buffer, storedBytes: number): void;
  /** Called after some blocks were stored; the pipeline waits for it. */
  settle(): Promise<void>;
  /** The block cannot be stored. */
  failed(block: number, error: RouseError): void;
}

interface Slab extends SharedSlab {
  readonly sinks: BlockSink[];
  readonly blocks: number[];
  /** `idKey` of each block, once it is hashed. */
  readonly keys: string[];
}

export interface IngestOptions {
  readonly key: Buffer;
  readonly blockBytes: number;
  /** 0: everything on this thread. */
  readonly workers: number;
  /** Input of one slab; `vaultLimits.ingestSlabBytes` when undefined. */
  readonly slabBytes: number | undefined;
  readonly index: VaultIndex;
  readonly packs: PackWriter;
}

/**
 * Takes blocks in: slabs of them are hashed, looked up, and what is new is packed and appended. The
 * costly steps run on workers, several slabs at once; lookups and appends happen here, in the
 * order of the slabs, so that neighbours of a disk become neighbours in packs. The number of slabs
 * is the bound of memory and of work in flight: `add` waits for a free one.
 */
export class Ingest {
  readonly #options: IngestOptions;
  readonly #hash: HashBlock;
  readonly #engine: IngestEngine;
  readonly #free: Slab[] = [];
  #slabs = 0;
  readonly #waiting: (() => void)[] = [];
  #filling: Slab | undefined;
  #lookedUp: Promise<void> = Promise.resolve();
  #appended: Promise<void> = Promise.resolve();
  /** New blocks that were looked up and are not appended yet. */
  readonly #claimed = new Set<string>();
  readonly #place: BlockPlace = { pack: 0, offset: 0, length: 0 };
  readonly #scratch: Buffer;

  constructor(options: IngestOptions) {
    const { key, blockBytes, workers } = options;
    const setup = { key: new Uint8Array(key), blockBytes };
    this.#options = options;
    this.#hash = keyedHash(key);
    this.#engine = workers > 0 ? workerEngine(setup, workers) : inlineEngine(setup);
    this.#scratch = Buffer.allocUnsafeSlow(recordBytesMax(blockBytes));
  }

  get isBroken(): boolean {
    return this.#engine.isBroken;
  }

  /** Slabs are made when the first backup needs them, and kept. */
  #freeSlab(): Slab | undefined {
    const free = this.#free.pop();
    if (free !== undefined || this.#slabs === vaultLimits.ingestSlabs) return free;
    const { blockBytes } = this.#options;
    const bytes = this.#options.slabBytes ?? vaultLimits.ingestSlabBytes;
    const memory = newSlabMemory(bytes, blockBytes);
    const views = new SlabViews(memory, blockBytes);
    return { number: this.#slabs++, memory, views, sinks: [], blocks: [], keys: [] };
  }

  /** Copies one block (the last of a disk may be short); waits while all slabs are busy. */
  async add(sink: BlockSink, block: number, bytes: Uint8Array): Promise<void> {
    while (!this.addNow(sink, block, bytes))
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  addNow(sink: BlockSink, block: number, bytes: Uint8Array): boolean {
    const slab = (this.#filling ??= this.#freeSlab());
    if (slab === undefined) return false;
    const i = slab.sinks.length;
    const room = slab.views.block(i);
    room.set(bytes);
    if (bytes.length < room.length) room.fill(0, bytes.length);
    slab.views.codecs[i] = codecs[sink.codec];
    slab.sinks.push(sink);
    slab.blocks.push(block);
    if (slab.sinks.length === slab.views.blocks) this.flush();
    return true;
  }

  /** Sends the half-filled slab on its way; `add`ed blocks reach their sinks by themselves. */
  flush(): void {
    const slab = this.#filling;
    if (slab === undefined) return;
    this.#filling = undefined;
    const count = slab.sinks.length;
    const hashed = this.#engine.hash(slab, count);
    const packed = this.#lookedUp.then(async () => {
      await hashed;
      return this.#lookUp(slab) > 0 ? { job: this.#engine.pack(slab, count) } : undefined;
    });
    this.#lookedUp = packed.then(ignore, ignore);
    this.#appended = this.#appended.then(async () => {
      try {
        await (
          await packed
        )?.job;
        await this.#append(slab);
      } catch (error) {
        this.#fail(slab, error);
      }
      this.#giveBack(slab);
    });
    hashed.catch(ignore);
    packed.catch(ignore);
  }

  /** Marks what the vault has, or will have from an earlier slab; answers how many are new. */
  #lookUp(slab: Slab): number {
    const { views } = slab;
    let fresh = 0;
    for (let i = 0; i < slab.sinks.length; i++) {
      const id = views.id(i);
      const key = idKey(id);
      slab.keys[i] = key;
      if (this.#isStored(id, key) || this.#claimed.has(key)) {
        views.codecs[i] = skip;
      } else {
        this.#claimed.add(key);
        fresh++;
      }
    }
    return fresh;
  }

  #isStored(id: Buffer, key: string): boolean {
    return this.#options.packs.has(key) || this.#options.index.find(id, 0, this.#place);
  }

  async #append(slab: Slab): Promise<void> {
    const { views, sinks, blocks, keys } = slab;
    const { packs } = this.#options;
    for (let i = 0; i < sinks.length; i++) {
      const id = Buffer.from(views.id(i));
      let storedBytes = 0;
      if (views.codecs[i] !== skip) {
        const key = keys[i] as string;
        this.#claimed.delete(key);
        storedBytes = views.lengths[i] ?? 0;
        if (packs.has(key)) storedBytes = 0;
        else packs.append({ id, key }, views.room(i), storedBytes);
      }
      (sinks[i] as BlockSink).stored(blocks[i] as number, id, storedBytes);
    }
    await packs.room();
    for (const sink of new Set(sinks)) await sink.settle();
  }

  /** Whoever counted on one of these blocks must fail too: `failures` tells them. */
  #fail(slab: Slab, error: unknown): void {
    const known =
      error instanceof RouseError ? error : new RouseError('internal', `ingest: ${String(error)}`);
    this.#options.packs.fail(known);
    for (let i = 0; i < slab.sinks.length; i++) {
      if (slab.views.codecs[i] !== skip) this.#claimed.delete(idKey(slab.views.id(i)));
      (slab.sinks[i] as BlockSink).failed(slab.blocks[i] as number, known);
    }
  }

  #giveBack(slab: Slab): void {
    slab.sinks.length = 0;
    slab.blocks.length = 0;
    slab.keys.length = 0;
    this.#free.push(slab);
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** Everything sent on its way has reached its sinks. */
  async drained(): Promise<void> {
    this.flush();
    await this.#appended;
  }

  /** Stores one whole block on this thread: tree nodes, which are few. */
  async put(plain: Buffer, codec: CodecName): Promise<{ id: Buffer; storedBytes: number }> {
    const { packs } = this.#options;
    const id = this.#hash(plain);
    const key = idKey(id);
    if (this.#isStored(id, key)) return { id, storedBytes: 0 };
    const length = encodeRecord(this.#scratch, id, plain, codec);
    packs.append({ id, key }, this.#scratch, length);
    await packs.room();
    return { id, storedBytes: length };
  }

  async close(): Promise<void> {
    await this.drained();
    await this.#engine.close();
  }
}

function ignore(): void {}

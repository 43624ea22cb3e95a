import { RouseError } from '../errors.ts';
import { vaultLimits } from '../limits.ts';
import type {
  DiskRoot,
  DiskWriter,
  IngestCost,
  Mtree,
  Saveset,
  SavesetDisk,
  SavesetFile,
  SavesetHeader,
  SavesetWriter,
} from './api.ts';
import { isAllZero, zeroId } from './hash.ts';
import type { BlockSink, Ingest } from './ingest.ts';
import type { PackWriter } from './pack-writer.ts';
import { rootOf, TreeWriter, type TreeStore } from './tree-writer.ts';
import { checkRoot } from './vault-disk.ts';

type Cost = { -readonly [K in keyof IngestCost]: number };

/** What a backup needs of its vault. */
export interface WriterHome {
  readonly blockBytes: number;
  readonly ingest: Ingest;
  readonly packs: PackWriter;
  readNode(id: Buffer): Promise<Buffer>;
  /** Blocks of this disk that are not zero, if a saveset says so. */
  knownReferencedBlocks(root: DiskRoot): number | undefined;
  /** The same, by walking the tree if need be. */
  referencedBlocks(root: DiskRoot): Promise<number>;
  readDisk(root: DiskRoot, target: Buffer, offset: number): Promise<void>;
  /** Makes packs and index durable, then the record. */
  commit(record: Omit<Saveset, 'id'>, check: () => void): Promise<Saveset>;
  ended(writer: SavesetWriter): void;
}

export class VaultSavesetWriter implements SavesetWriter {
  readonly #home: WriterHome;
  readonly #mtree: Mtree;
  readonly #cost: Cost = {
    readBytes: 0,
    zeroBytes: 0,
    knownBytes: 0,
    newBytes: 0,
    storedBytes: 0,
  };
  readonly #failuresBefore: number;
  readonly #disks: { writer: TreeDiskWriter; name: string; source: string }[] = [];
  readonly #files: SavesetFile[] = [];
  #state: 'open' | 'sealing' | 'ended' = 'open';

  constructor(home: WriterHome, mtree: Mtree) {
    this.#home = home;
    this.#mtree = mtree;
    this.#failuresBefore = home.packs.failures;
  }

  get cost(): IngestCost {
    return { ...this.#cost };
  }

  /** Throws why a block that this saveset may need was not stored. */
  readonly #check = () => this.#home.packs.check(this.#failuresBefore);

  #mustBeOpen(): void {
    if (this.#state !== 'open')
      throw new RouseError('wrong-state', 'this backup is sealed or abandoned already');
    this.#check();
  }

  disk(name: string, sizeBytes: number, source: string, base?: DiskRoot): DiskWriter {
    this.#mustBeOpen();
    if (this.#disks.some((disk) => disk.name === name))
      throw new RouseError('already-exists', `the saveset has a disk ${name} already`);
    const writer = this.#diskWriter(sizeBytes, base);
    this.#disks.push({ writer, name, source });
    return writer;
  }

  #diskWriter(sizeBytes: number, base?: DiskRoot): TreeDiskWriter {
    const writer = new TreeDiskWriter(
      { home: this.#home, codec: this.#mtree.codec, cost: this.#cost, check: this.#check },
      sizeBytes,
      base,
    );
    return writer;
  }

  async file(name: string, bytes: Uint8Array): Promise<void> {
    this.#mustBeOpen();
    if (bytes.length > vaultLimits.fileBytesMax)
      throw new RouseError('bad-request', `${name} has ${bytes.length} bytes; 64 MiB is the most`);
    if (this.#files.some((file) => file.name === name))
      throw new RouseError('already-exists', `the saveset has a file ${name} already`);
    const writer = this.#diskWriter(bytes.length);
    await writer.write(0, bytes);
    const root = await writer.finish();
    this.#files.push({ name, root, referencedBytes: await writer.referencedBytes() });
  }

  async seal(header: SavesetHeader): Promise<Saveset> {
    this.#mustBeOpen();
    this.#state = 'sealing';
    try {
      const disks: SavesetDisk[] = [];
      for (const { writer, name, source } of this.#disks) {
        const root = await writer.finish();
        disks.push({ name, root, source, referencedBytes: await writer.referencedBytes() });
      }
      const { mtree, cost } = { mtree: this.#mtree.name, cost: this.cost };
      const record = { ...header, mtree, disks, files: this.#files, cost };
      return await this.#home.commit(record, this.#check);
    } finally {
      this.#end();
    }
  }

  #end(): void {
    this.#state = 'ended';
    this.#home.ended(this);
  }

  async abandon(): Promise<void> {
    if (this.#state === 'ended') return;
    await this.#home.ingest.drained();
    this.#end();
  }
}

interface WriterContext {
  readonly home: WriterHome;
  readonly codec: Mtree['codec'];
  readonly cost: Cost;
  check(): void;
}

class TreeDiskWriter implements DiskWriter, BlockSink {
  readonly codec: Mtree['codec'];
  readonly #context: WriterContext;
  readonly #sizeBytes: number;
  readonly #tree: TreeWriter;
  readonly #started: Promise<void>;
  readonly #hasBase: boolean;
  /** Blocks in the pipeline: no more than its slabs hold. */
  readonly #inFlight = new Set<number>();
  /** No block from here on was written. */
  #wroteBelow = 0;
  #failure: RouseError | undefined;
  #finished: Promise<DiskRoot> | undefined;
  #root: DiskRoot | undefined;

  constructor(context: WriterContext, sizeBytes: number, base?: DiskRoot) {
    const { home } = context;
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0)
      throw new RouseError('bad-request', `a disk of ${sizeBytes} bytes`);
    if (base !== undefined) checkRoot(base, home.blockBytes);
    this.#context = context;
    this.codec = context.codec;
    this.#sizeBytes = sizeBytes;
    this.#hasBase = base !== undefined && base.hash !== '';
    const store: TreeStore = {
      read: (id) => home.readNode(id),
      store: async (node) => {
        const { id, storedBytes } = await home.ingest.put(node, context.codec);
        context.cost.storedBytes += storedBytes;
        return id;
      },
    };
    const start =
      base === undefined
        ? undefined
        : { root: base, referencedBlocks: home.knownReferencedBlocks(base) };
    this.#tree = new TreeWriter(store, sizeBytes, home.blockBytes, start);
    this.#started = base === undefined ? Promise.resolve() : this.#cutLastBlock(base);
    this.#started.catch(() => undefined);
  }

  /** A disk that became smaller keeps no byte beyond its end: the last block is padded anew. */
  async #cutLastBlock(base: DiskRoot): Promise<void> {
    const within = this.#sizeBytes % this.#context.home.blockBytes;
    if (base.sizeBytes <= this.#sizeBytes || within === 0) return;
    const start = this.#sizeBytes - within;
    const bytes = Buffer.alloc(within);
    await this.#context.home.readDisk(base, bytes, start);
    await this.#take(start / this.#context.home.blockBytes, bytes);
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    this.#mustTake(offset, bytes.length);
    await this.#started;
    this.#context.cost.readBytes += bytes.length;
    const { blockBytes } = this.#context.home;
    for (let at = 0; at < bytes.length; at += blockBytes) {
      const waiting = this.#take((offset + at) / blockBytes, bytes.subarray(at, at + blockBytes));
      if (waiting !== undefined) await waiting;
    }
  }

  #mustTake(offset: number, length: number): void {
    this.#check();
    if (this.#finished !== undefined)
      throw new RouseError('wrong-state', 'this disk is finished already');
    const { blockBytes } = this.#context.home;
    const end = offset + length;
    const isWhole = end % blockBytes === 0 || end === this.#sizeBytes;
    if (offset < 0 || offset % blockBytes !== 0 || !isWhole || end > this.#sizeBytes)
      throw new RouseError(
        'bad-request',
        `bytes ${offset} to ${end} are no whole blocks of ${blockBytes} bytes of a disk of ` +
          `${this.#sizeBytes} bytes`,
      );
  }

  #check(): void {
    if (this.#failure !== undefined) throw this.#failure;
    this.#context.check();
  }

  #take(block: number, bytes: Uint8Array): Promise<void> | undefined {
    if (isAllZero(bytes)) {
      this.#context.cost.zeroBytes += bytes.length;
      return this.#zeroBlocks(block, block + 1);
    }
    if (this.#inFlight.has(block)) return this.#takeAgain(block, bytes);
    this.#inFlight.add(block);
    this.#wroteBelow = Math.max(this.#wroteBelow, block + 1);
    if (this.#context.home.ingest.addNow(this, block, bytes)) return undefined;
    return this.#context.home.ingest.add(this, block, bytes);
  }

  /** The later of two writes of one block wins. */
  async #takeAgain(block: number, bytes: Uint8Array): Promise<void> {
    await this.#context.home.ingest.drained();
    await this.#take(block, bytes);
  }

  async zero(offset: number, length: number): Promise<void> {
    this.#mustTake(offset, length);
    await this.#started;
    this.#context.cost.zeroBytes += length;
    const { blockBytes } = this.#context.home;
    await this.#zeroBlocks(offset / blockBytes, Math.ceil((offset + length) / blockBytes));
  }

  /** In an empty tree only what was written before needs to be zeroed. */
  #zeroBlocks(from: number, to: number): Promise<void> | undefined {
    if (!this.#hasBase && from >= this.#wroteBelow) return undefined;
    if (this.#isInFlight(from, to)) return this.#zeroAfterWrites(from, to);
    if (to - from > 1) return this.#tree.zero(from, to);
    this.#tree.set(from, zeroId);
    return this.#tree.isCrowded ? this.#tree.settle() : undefined;
  }

  #isInFlight(from: number, to: number): boolean {
    if (to - from === 1) return this.#inFlight.has(from);
    for (const block of this.#inFlight) if (block >= from && block < to) return true;
    return false;
  }

  async #zeroAfterWrites(from: number, to: number): Promise<void> {
    await this.#context.home.ingest.drained();
    await this.#tree.zero(from, to);
  }

  stored(block: number, id: Buffer, storedBytes: number): void {
    this.#inFlight.delete(block);
    this.#tree.set(block, id);
    const { cost, home } = this.#context;
    const bytes = Math.min(home.blockBytes, this.#sizeBytes - block * home.blockBytes);
    if (storedBytes > 0) cost.newBytes += bytes;
    else cost.knownBytes += bytes;
    cost.storedBytes += storedBytes;
  }

  async settle(): Promise<void> {
    await this.#tree.settle();
  }

  failed(block: number, error: RouseError): void {
    this.#inFlight.delete(block);
    this.#failure ??= error;
  }

  finish(): Promise<DiskRoot> {
    this.#finished ??= this.#finish();
    return this.#finished;
  }

  async #finish(): Promise<DiskRoot> {
    await this.#started;
    await this.#context.home.ingest.drained();
    this.#check();
    const top = await this.#tree.finish();
    this.#check();
    this.#root = rootOf(top, this.#tree.shape, this.#sizeBytes);
    return this.#root;
  }

  /** After `finish`: bytes of blocks that are not zero. */
  async referencedBytes(): Promise<number> {
    const root = this.#root ?? (await this.finish());
    const blocks = this.#tree.referencedBlocks ?? (await this.#context.home.referencedBlocks(root));
    return Math.min(blocks * this.#context.home.blockBytes, root.sizeBytes);
  }
}

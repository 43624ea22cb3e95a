/**
 * The vault: disks as hash trees of blocks, deduplicated into packs.
 *
 * Nouns: a *block* is `blockBytes` of plaintext, named by its id (hash.ts); a *record* is a block as it
 * lies in a *pack* (record.ts, pack.ts); the *index* says where (block-index.ts); a *tree* maps a disk
 * to blocks, its nodes being blocks (shape.ts); *savesets* and *mtrees* are JSON (records.ts). All of it
 * lies in a blob store; only the index, a cache, lies in a directory of its own.
 *
 * Invariants: a block is never changed and never stored twice on purpose; zeros are never stored; a
 * saveset's record is written after everything it needs is durable (pack, index, then record), so
 * whatever is found after a crash is whole; what comes from a pack is checked before use.
 *
 * Concurrency: one process has a vault open (lock.ts). In it everything may run beside everything
 * else: any number of disks are read while backups are taken in, which share one pipeline
 * (ingest.ts) and wait for each other's slabs in turn. Only `rescan` and backups exclude each
 * other; reads go on during both.
 */
import { isRouseError, RouseError } from '../errors.ts';
import { vaultLimits } from '../limits.ts';
import type { BlobStore } from '../blobs/port.ts';
import type { Clock } from '../lib/clock.ts';
import type { Extent } from '../lib/disk.ts';
import type { Files } from '../lib/files.ts';
import type { Random } from '../lib/random.ts';
import type {
  CacheStats,
  DiskRoot,
  Mtree,
  RescanReport,
  Saveset,
  SavesetFile,
  SavesetWriter,
  Vault,
  VaultDisk,
  VaultStats,
  VerifyProgress,
  VerifyReport,
} from './api.ts';
import { BlockCache, IdCell } from './block-cache.ts';
import { BlockStore, nodeWeight } from './block-store.ts';
import { encodeConfig, names, newConfig, readConfig, type VaultConfig } from './format.ts';
import { keyedHash } from './hash.ts';
import { IndexFiles } from './index-files.ts';
import { Ingest } from './ingest.ts';
import { processOwner, takeLock, type LockOwner } from './lock.ts';
import { PackReaders } from './pack-readers.ts';
import { PackWriter } from './pack-writer.ts';
import type { PackShape } from './pack.ts';
import { meetPacks, packNameOf, readTables } from './packs-found.ts';
import {
  checkMtreeName,
  decodeMtree,
  decodeSaveset,
  encodeMtree,
  encodeSaveset,
  readRecords,
  savesetBlob,
} from './records.ts';
import { VaultSavesetWriter, type WriterHome } from './saveset-writer.ts';
import { countBlocks, difference } from './tree-walk.ts';
import { VaultIndex } from './vault-index.ts';
import { TreeDisk } from './vault-disk.ts';
import { Verification } from './verify.ts';

export interface CreateVaultOptions {
  readonly random: Random;
  /** A power of two, 4 KiB to 1 MiB; `vaultLimits.blockBytesDefault` when undefined. */
  readonly blockBytes?: number;
  readonly packBytes?: number;
}

/** Writes a new vault's configuration; `already-exists` when there is one. Answers its id. */
export async function createVault(store: BlobStore, options: CreateVaultOptions): Promise<string> {
  const packBytes = options.packBytes ?? vaultLimits.packBytesDefault;
  if (packBytes < vaultLimits.blockBytesMin || packBytes > vaultLimits.packBytesMax)
    throw new RouseError('bad-request', `packs of ${packBytes} bytes: 4 KiB to 128 MiB will do`);
  const blockBytes = options.blockBytes ?? vaultLimits.blockBytesDefault;
  const config = newConfig(options.random, blockBytes, packBytes);
  await store.put(names.config, [encodeConfig(config)]);
  return config.id;
}

export interface OpenVaultOptions {
  readonly store: BlobStore;
  /** Where the index and the lock live: a directory of this vault alone. */
  readonly index: { readonly files: Files; readonly directory: string };
  /** Bound of the block cache. */
  readonly cacheBytes: number;
  readonly clock: Clock;
  readonly random: Random;
  /** Threads that hash and pack; 0: none, everything on this one. */
  readonly workers?: number;
  /** Input of one slab of the ingest pipeline; 1 MiB when undefined. */
  readonly slabBytes?: number;
  /** Who holds the lock; this process when undefined. */
  readonly owner?: LockOwner;
}

/**
 * Opens a vault: reads its configuration, the index, and the tables of packs that the index does
 * not know. Throws `not-found`, `newer-format`, `busy`, `corrupt-data`.
 */
export async function openVault(options: OpenVaultOptions): Promise<OpenedVault> {
  const config = await readConfig(options.store);
  const { files, directory } = options.index;
  const owner = options.owner ?? processOwner(options.random.id());
  let unlock: () => Promise<void>;
  try {
    unlock = await takeLock(files, directory, owner, options.clock);
  } catch (error) {
    forget(owner);
    throw error;
  }
  const release = async () => {
    try {
      await unlock();
    } finally {
      forget(owner);
    }
  };
  try {
    const vault = new OpenedVault(options, config, release);
    await vault.load();
    return vault;
  } catch (error) {
    await release().catch(() => undefined);
    throw error;
  }
}

function forget(owner: LockOwner): void {
  if ('forget' in owner && typeof owner.forget === 'function') owner.forget();
}

export class OpenedVault implements Vault {
  readonly id: string;
  readonly blockBytes: number;
  /** What was wrong with packs when the vault was opened or rescanned, in sentences. */
  problems: readonly string[] = [];
  readonly #options: OpenVaultOptions;
  readonly #store: BlobStore;
  readonly #config: VaultConfig;
  readonly #shape: PackShape;
  readonly #index: VaultIndex;
  readonly #readers: PackReaders;
  readonly #packs: PackWriter;
  readonly #cache: BlockCache;
  readonly #blocks: BlockStore;
  readonly #release: () => Promise<void>;
  readonly #writers = new Set<SavesetWriter>();
  readonly #referenced = new Map<string, number>();
  #records: Map<string, Saveset> | undefined;
  #ingest: Ingest | undefined;
  #isRescanning = false;
  #isClosed = false;

  constructor(options: OpenVaultOptions, config: VaultConfig, release: () => Promise<void>) {
    this.id = config.id;
    this.blockBytes = config.blockBytes;
    this.#options = options;
    this.#store = options.store;
    this.#config = config;
    this.#release = release;
    const vaultId = Buffer.from(config.id, 'hex');
    const { files, directory } = options.index;
    this.#shape = { blockBytes: config.blockBytes, vaultId, hash: keyedHash(config.key) };
    this.#index = new VaultIndex(new IndexFiles(files, directory, vaultId, config.key));
    this.#readers = new PackReaders(
      options.store,
      (pack) => this.#index.packName(pack),
      vaultLimits.packReadersMax,
    );
    this.#packs = new PackWriter(this.#shape, options.store, this.#index, config.packBytes);
    this.#cache = new BlockCache(config.blockBytes, options.cacheBytes, vaultLimits.cacheBlocksMin);
    this.#blocks = new BlockStore(this.#cache, this.#index, this.#readers, this.#packs);
  }

  async load(): Promise<void> {
    await this.#index.load();
    this.problems = await meetPacks(this.#store, this.#index, this.#shape);
    await this.#index.save();
  }

  async mtrees(): Promise<readonly Mtree[]> {
    const { records } = await readRecords(this.#store, names.mtrees, decodeMtree);
    return records.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  async createMtree(name: string, codec: Mtree['codec']): Promise<Mtree> {
    checkMtreeName(name);
    const mtree = { name, codec, createdMs: this.#options.clock.now() };
    try {
      await this.#store.put(names.mtree(name), [encodeMtree(mtree)]);
    } catch (error) {
      if (!isRouseError(error, 'already-exists')) throw error;
      throw new RouseError('already-exists', `there is an mtree ${name} already`);
    }
    return mtree;
  }

  /** Damaged records are left out here; `verify` and `rescan` name them. */
  async savesets(): Promise<readonly Saveset[]> {
    const known = await this.#allRecords();
    return [...known.values()].sort((a, b) => a.takenAtMs - b.takenAtMs);
  }

  /** Read once; this process is the only one that adds any. */
  async #allRecords(): Promise<Map<string, Saveset>> {
    if (this.#records !== undefined) return this.#records;
    const { records } = await readRecords(this.#store, names.savesets, decodeSaveset);
    const known = new Map(records.map((saveset) => [saveset.id, saveset]));
    for (const saveset of known.values()) this.#remember(saveset);
    this.#records ??= known;
    return this.#records;
  }

  #remember(saveset: Saveset): void {
    for (const { root, referencedBytes } of [...saveset.disks, ...saveset.files])
      if (referencedBytes !== undefined)
        this.#referenced.set(root.hash, Math.ceil(referencedBytes / this.blockBytes));
  }

  async saveset(id: string): Promise<Saveset> {
    const known = this.#records?.get(id);
    if (known !== undefined) return known;
    try {
      return decodeSaveset(await this.#store.get(savesetBlob(id)), names.saveset(id));
    } catch (error) {
      if (!isRouseError(error, 'not-found')) throw error;
      throw new RouseError('not-found', `there is no saveset ${id}`);
    }
  }

  async openDisk(root: DiskRoot): Promise<VaultDisk> {
    this.#mustBeOpen();
    return new TreeDisk(root, this.#blocks);
  }

  #mustBeOpen(): void {
    if (this.#isClosed) throw new RouseError('wrong-state', 'the vault is closed');
  }

  async readFile(file: SavesetFile): Promise<Buffer> {
    if (file.root.sizeBytes > vaultLimits.fileBytesMax)
      throw new RouseError('bad-request', `${file.name} is larger than 64 MiB`);
    const bytes = Buffer.alloc(file.root.sizeBytes);
    await this.#readDisk(file.root, bytes, 0);
    return bytes;
  }

  async #readDisk(root: DiskRoot, target: Buffer, offset: number): Promise<void> {
    const disk = await this.openDisk(root);
    await disk.read(target, offset);
  }

  async begin(mtree: string): Promise<SavesetWriter> {
    this.#mustBeOpen();
    if (this.#isRescanning)
      throw new RouseError('busy', 'the vault is being rescanned; backups wait until it has ended');
    const record = (await this.mtrees()).find((one) => one.name === mtree);
    if (record === undefined)
      throw new RouseError('not-found', `there is no mtree ${mtree}`, {
        advice: 'List the mtrees, or create this one.',
      });
    await this.#allRecords();
    const writer = new VaultSavesetWriter(this.#home(), record);
    this.#writers.add(writer);
    return writer;
  }

  #home(): WriterHome {
    return {
      blockBytes: this.blockBytes,
      ingest: this.#soundIngest(),
      packs: this.#packs,
      readNode: (id) => this.#readNode(id),
      knownReferencedBlocks: (root) => (root.hash === '' ? 0 : this.#referenced.get(root.hash)),
      referencedBlocks: async (root) =>
        this.#referenced.get(root.hash) ??
        (await countBlocks(root, this.blockBytes, (id) => this.#readNode(id))),
      readDisk: (root, target, offset) => this.#readDisk(root, target, offset),
      commit: (record, check) => this.#commit(record, check),
      ended: (writer) => this.#ended(writer),
    };
  }

  /** A thread that died has failed the backups of its time, not those to come. */
  #soundIngest(): Ingest {
    if (this.#ingest?.isBroken === true) {
      void this.#ingest.close();
      this.#ingest = undefined;
    }
    this.#ingest ??= this.#startIngest();
    return this.#ingest;
  }

  #startIngest(): Ingest {
    return new Ingest({
      key: this.#config.key,
      blockBytes: this.blockBytes,
      workers: this.#options.workers ?? vaultLimits.ingestWorkers,
      slabBytes: this.#options.slabBytes,
      index: this.#index,
      packs: this.#packs,
    });
  }

  /** A copy of the node. */
  async #readNode(id: Buffer): Promise<Buffer> {
    const cell = new IdCell(id);
    for (;;) {
      const slot = this.#blocks.now(cell, nodeWeight, this.blockBytes);
      if (slot >= 0) return Buffer.from(this.#cache.slot(slot));
      await this.#blocks.load([cell], nodeWeight);
    }
  }

  /** Packs, then the index, then the record: each durable before the next. */
  async #commit(record: Omit<Saveset, 'id'>, check: () => void): Promise<Saveset> {
    await this.#packs.flush();
    check();
    await this.#index.save();
    const saveset: Saveset = { id: this.#options.random.id(), ...record };
    await this.#store.put(names.saveset(saveset.id), [encodeSaveset(saveset)]);
    this.#remember(saveset);
    this.#records?.set(saveset.id, saveset);
    return saveset;
  }

  #ended(writer: SavesetWriter): void {
    this.#writers.delete(writer);
    if (this.#writers.size === 0) this.#packs.release();
  }

  difference(a: DiskRoot, b: DiskRoot): AsyncIterable<Extent> {
    return difference(a, b, this.blockBytes, (id) => this.#readNode(id));
  }

  async stats(): Promise<VaultStats> {
    const savesets = [...(await this.#allRecords()).values()];
    const parts = savesets.flatMap((saveset) => saveset.disks);
    const logicalBytes = parts.reduce((sum, disk) => sum + disk.root.sizeBytes, 0);
    const referencedBytes = parts.reduce(
      (sum, disk) => sum + (disk.referencedBytes ?? disk.root.sizeBytes),
      0,
    );
    const uniqueBytes = this.#index.blocks.size * this.blockBytes;
    const { storedBytes } = this.#index;
    return {
      formatVersion: this.#config.version,
      blockBytes: this.blockBytes,
      savesets: savesets.length,
      machines: new Set(savesets.map((saveset) => saveset.machine.id)).size,
      packs: this.#index.packs.length,
      logicalBytes,
      referencedBytes,
      uniqueBytes,
      storedBytes,
      dedupRatio: ratio(referencedBytes, uniqueBytes),
      compressionRatio: ratio(uniqueBytes, storedBytes),
      indexEntries: this.#index.blocks.size,
      indexMemoryBytes: this.#index.memoryBytes,
      cache: this.cacheStats(),
    };
  }

  cacheStats(): CacheStats {
    const cache = this.#cache;
    return {
      boundBytes: cache.slots * cache.blockBytes,
      usedBytes: cache.usedBytes,
      hits: cache.hits,
      misses: cache.misses,
    };
  }

  async verify(
    id?: string,
    onProgress?: (progress: VerifyProgress) => void,
    signal?: AbortSignal,
  ): Promise<VerifyReport> {
    const { records, problems } = await this.#recordsToVerify(id);
    const { blockBytes } = this;
    const { hash } = this.#shape;
    const pause = () => new Promise<void>((resolve) => void setImmediate(resolve));
    const [index, readers] = [this.#index, this.#readers];
    const options = { blockBytes, index, readers, hash, pause, onProgress, signal };
    const report = await new Verification(options).run(records);
    const unreadable = problems.map((problem) => unreadableSaveset(problem));
    return {
      savesets: [...report.savesets, ...unreadable],
      ok: report.ok && unreadable.length === 0,
    };
  }

  async #recordsToVerify(id: string | undefined) {
    const all = await readRecords(this.#store, names.savesets, decodeSaveset);
    if (id === undefined) return all;
    const one = all.records.filter((saveset) => saveset.id === id);
    const broken = all.problems.filter((problem) => problem.includes(names.saveset(id)));
    if (one.length + broken.length === 0)
      throw new RouseError('not-found', `there is no saveset ${id}`);
    return { records: one, problems: broken };
  }

  async rescan(
    onProgress?: (progress: VerifyProgress) => void,
    signal?: AbortSignal,
  ): Promise<RescanReport> {
    if (this.#writers.size > 0 || this.#isRescanning)
      throw new RouseError('busy', 'a backup is being taken in; rescan when it has ended');
    this.#isRescanning = true;
    try {
      return await this.#rescan(onProgress, signal);
    } finally {
      this.#isRescanning = false;
    }
  }

  async #rescan(
    onProgress: ((progress: VerifyProgress) => void) | undefined,
    signal: AbortSignal | undefined,
  ): Promise<RescanReport> {
    await this.#packs.flush();
    const listed = await this.#store.list(names.packs);
    const packs = listed.map(({ name, sizeBytes }) => ({ name: packNameOf(name), sizeBytes }));
    const fresh = this.#index.successor();
    const shape = this.#shape;
    const found = await readTables(this.#store, fresh, shape, packs, onProgress, signal);
    await this.#index.adopt(fresh);
    const { records, problems } = await readRecords(this.#store, names.savesets, decodeSaveset);
    this.#records = new Map(records.map((saveset) => [saveset.id, saveset]));
    for (const saveset of records) this.#remember(saveset);
    this.problems = found;
    return {
      packs: packs.length,
      blocks: this.#index.blocks.size,
      savesets: records.length,
      problems: [...found, ...problems],
    };
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    try {
      await this.#ingest?.close();
      await this.#packs.flush();
      await this.#index.save();
      await this.#readers.close();
    } finally {
      await this.#release();
    }
  }
}

function ratio(a: number, b: number): number {
  return b === 0 ? 1 : a / b;
}

function unreadableSaveset(problem: string): VerifyReport['savesets'][number] {
  const id = /savesets\/([A-Za-z0-9_-]+)\.json/.exec(problem)?.[1] ?? 'unknown';
  return { id, machine: 'unknown', ok: false, blocks: 0, bytes: 0, problems: [problem] };
}

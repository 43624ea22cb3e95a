/**
 * A clone: a saveset's disks that can be written. Nouns: the *record* says what it is; the *layer*
 * holds what its disks were told; the *table* and the *plain area* hold its other files.
 *
 *   <clones>/<clone id>/clone.json   the record, written once
 *   <clones>/<clone id>/layer/       the write layer
 *   <clones>/<clone id>/names/       the table of files
 *   <clones>/<clone id>/files/       one file for each plain file, named by number
 *
 * A clone is made beside its place and renamed into it, so it is there whole or not at all; it is
 * discarded by renaming it away first. Making, opening and closing cost the same for every size
 * of disk. A clone is open at most once, in one process: the caller sees to that.
 */
import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import type { Files } from '../lib/files.ts';
import type { Random } from '../lib/random.ts';
import { datastoreLimits } from '../limits.ts';
import { Stable, type FileId, type FileSystem } from '../nfs/file-system.ts';
import type { DiskRoot, SavesetWriter, VaultDisk } from '../vault/api.ts';
import { readRecord, recordName, writeRecord, type CloneRecord } from './clone-record.ts';
import { makeFirstFiles } from './clone-files.ts';
import { diskFileNames, flatName } from './disk-names.ts';
import { ExportFileSystem } from './export-file-system.ts';
import { FileTable } from './file-table.ts';
import type { LayerTuning } from './layer-surroundings.ts';
import { PlainFiles } from './plain-files.ts';
import { changedExtents, exportRaw, sealDisks } from './seal.ts';
import type { SealedContent, SealOptions } from './seal.ts';
import { TimeSource } from './time-source.ts';
import { WriteLayer } from './write-layer.ts';

export interface Damage {
  readonly savesetId: string;
  /** The disk's name; empty: the clone's own files. */
  readonly disk: string;
  readonly offset: number;
  readonly message: string;
}

export interface CloneSurroundings {
  readonly files: Files;
  readonly clock: Clock;
  readonly random: Random;
  /** Changes whenever the machine boots: /proc/sys/kernel/random/boot_id. */
  readonly bootId: string;
  readonly openDisk: (root: DiskRoot) => Promise<VaultDisk>;
  readonly onDamage: (damage: Damage) => void;
  /** Other bounds than `datastoreLimits`, for tests. */
  readonly tuning?: Partial<LayerTuning>;
}

export interface NewClone {
  /** Letters, digits, `.`, `_` and `-`; the name of its directory. */
  readonly cloneId: string;
  readonly mtree: string;
  readonly savesetId: string;
  /** One path component. */
  readonly folder: string;
  readonly disks: readonly { readonly name: string; readonly root: DiskRoot }[];
  /** Configuration to begin with: `domain.xml`, `nvram`. */
  readonly files: readonly { readonly name: string; readonly bytes: Uint8Array }[];
}

/**
 * Makes a clone below the directory `clones`; durable when it resolves. Does nothing when it is
 * there already. Throws `already-exists` when the id is taken by a clone of another saveset.
 */
export async function createClone(
  around: CloneSurroundings,
  clones: string,
  spec: NewClone,
): Promise<CloneRecord> {
  checkSpec(spec);
  const { files, random, clock } = around;
  const directory = `${clones}/${spec.cloneId}`;
  const existing = await readRecord(files, directory);
  if (existing !== undefined) {
    if (existing.savesetId === spec.savesetId) return existing;
    const what = `clone ${spec.cloneId} is one of saveset ${existing.savesetId}`;
    throw new RouseError('already-exists', what);
  }
  const fresh = `${directory}${newSuffix}`;
  await files.makeDirectory(clones);
  await removeTree(files, fresh);
  await files.makeDirectory(fresh);
  const fileNames = diskFileNames(spec.disks.map(({ name }) => name));
  const disks = spec.disks.map(({ name, root }, index) => {
    return { name, root, file: fileNames[index] ?? name };
  });
  const record: CloneRecord = {
    format: 1,
    cloneId: spec.cloneId,
    mtree: spec.mtree,
    savesetId: spec.savesetId,
    folder: spec.folder,
    disks,
    files: spec.files.map(({ name }) => name),
    fsid: String(random.bytes(8).readBigUInt64LE() >> 1n),
    generation: random.bytes(4).readUInt32LE() >>> 1,
    handleSecret: random.bytes(32).toString('hex'),
    createdMs: clock.now(),
  };
  await WriteLayer.create(
    { ...around, times: new TimeSource(clock), onDamage: () => undefined },
    `${fresh}/layer`,
  );
  await makeFirstFiles(around, fresh, { ...spec, disks });
  await writeRecord(files, fresh, record);
  await files.syncDirectory(fresh);
  await files.rename(fresh, directory);
  await files.syncDirectory(clones);
  return record;
}

/** Ids of the clones below `clones`, unsorted. */
export async function listClones(
  around: Pick<CloneSurroundings, 'files'>,
  clones: string,
): Promise<string[]> {
  const ids: string[] = [];
  for (const name of await around.files.list(clones)) {
    if (name.endsWith(newSuffix) || name.endsWith(goneSuffix)) continue;
    const stat = await around.files.stat(`${clones}/${name}/${recordName}`);
    if (stat !== undefined) ids.push(name);
  }
  return ids;
}

/** Removes a clone that is not open, with all its writes. No error when it is gone. */
export async function discardClone(
  around: Pick<CloneSurroundings, 'files'>,
  clones: string,
  cloneId: string,
): Promise<void> {
  checkId(cloneId);
  const { files } = around;
  const directory = `${clones}/${cloneId}`;
  const gone = `${directory}${goneSuffix}`;
  await removeTree(files, gone);
  await removeTree(files, `${directory}${newSuffix}`);
  if ((await files.stat(directory)) === undefined) return;
  await files.rename(directory, gone);
  await files.syncDirectory(clones);
  await removeTree(files, gone);
}

/** Throws `not-found`. */
export async function openClone(
  around: CloneSurroundings,
  clones: string,
  cloneId: string,
): Promise<Clone> {
  checkId(cloneId);
  const directory = `${clones}/${cloneId}`;
  const record = await readRecord(around.files, directory);
  if (record === undefined) throw new RouseError('not-found', `there is no clone ${cloneId}`);
  return Clone.open(around, directory, record);
}

export class Clone {
  readonly record: CloneRecord;
  readonly #around: CloneSurroundings;
  readonly #directory: string;
  readonly #layer: WriteLayer;
  readonly #table: FileTable;
  readonly #plain: PlainFiles;
  readonly #bases: readonly VaultDisk[];
  readonly #fileSystem: ExportFileSystem;

  /** Use `openClone`. */
  static async open(
    around: CloneSurroundings,
    directory: string,
    record: CloneRecord,
  ): Promise<Clone> {
    const { files, clock } = around;
    const bases: VaultDisk[] = [];
    for (const { root } of record.disks) bases.push(await around.openDisk(root));
    const times = new TimeSource(clock);
    const plain = new PlainFiles(files, `${directory}/files`, () => layer.lost());
    let plainKnown = false;
    const layer: WriteLayer = await WriteLayer.open(
      {
        ...around,
        times,
        unsyncedElsewhere: () => !plainKnown || plain.unsynced,
        onDamage: (disk, offset, message) =>
          around.onDamage({
            savesetId: record.savesetId,
            disk: record.disks[disk]?.name ?? '',
            offset: Math.max(0, offset),
            message,
          }),
      },
      `${directory}/layer`,
      bases.map((base) => ({ base, sizeBytes: base.sizeBytes })),
    );
    const table = await FileTable.open(files, `${directory}/names`);
    await plain.sweep((id) => table.node(id) !== undefined);
    // What a killed process left in the kernel's memory is synced before anything is called clean.
    if (layer.dirty) await plain.syncAll(Array.from(table.nodes(), ({ record: { id } }) => id));
    plainKnown = true;
    layer.considerClean();
    return new Clone(around, directory, record, layer, table, plain, bases, times);
  }

  private constructor(
    around: CloneSurroundings,
    directory: string,
    record: CloneRecord,
    layer: WriteLayer,
    table: FileTable,
    plain: PlainFiles,
    bases: readonly VaultDisk[],
    times: TimeSource,
  ) {
    this.record = record;
    this.#around = around;
    this.#directory = directory;
    this.#layer = layer;
    this.#table = table;
    this.#plain = plain;
    this.#bases = bases;
    this.#fileSystem = new ExportFileSystem({
      table,
      plain,
      layer,
      times,
      disks: bases,
      fsid: BigInt(record.fsid),
      generation: record.generation,
      space: () => around.files.space(directory),
    });
  }

  /** The key of this export's file handles. */
  get handleSecret(): Buffer {
    return Buffer.from(this.record.handleSecret, 'hex');
  }

  /** What the export shows; the same object each time. */
  fileSystem(): FileSystem {
    return this.#fileSystem;
  }

  /** Disks with their paths in the export, as they were named at first. */
  get disks(): readonly {
    readonly name: string;
    readonly path: string;
    readonly sizeBytes: number;
  }[] {
    return this.record.disks.map(({ name, root, file }) => {
      const path = `${this.record.folder}/${flatName(file ?? name)}`;
      return { name, path, sizeBytes: root.sizeBytes };
    });
  }

  /** Bytes that the disks were told, and bytes that all files of the clone take on disk. */
  async stats(): Promise<{ readonly writtenBytes: number; readonly allocatedBytes: number }> {
    const { writtenBytes, allocatedBytes } = this.#layer.stats();
    let plainBytes = 0;
    for (const { record } of this.#table.nodes()) {
      if (record.kind === 'file') plainBytes += (await this.#plain.size(record.id)).allocatedBytes;
    }
    return { writtenBytes, allocatedBytes: allocatedBytes + plainBytes };
  }

  /** Replaces a small file of the export, or makes it; durable. `path`: `web01/domain.xml`. */
  async writeFile(path: string, bytes: Uint8Array): Promise<void> {
    const { directory, name } = this.#resolve(path);
    const fs = this.#fileSystem;
    const file = await fs.create(directory, name, { mode: 'unchecked', change: { sizeBytes: 0 } });
    await fs.write(file, 0, Buffer.from(bytes), Stable.fileSync);
  }

  /** Throws `not-found`. At most 16 MiB. */
  async readFile(path: string): Promise<Buffer> {
    const { directory, name } = this.#resolve(path);
    const fs = this.#fileSystem;
    const file = this.#table.node(directory)?.entries.get(name)?.id;
    if (file === undefined) throw new RouseError('not-found', `there is no file ${path}`);
    const { sizeBytes } = await fs.attributes(file);
    if (sizeBytes > smallFileBytesMax) throw new RouseError('bad-request', `${path} is too large`);
    const bytes = Buffer.alloc(sizeBytes);
    await fs.read(file, 0, bytes);
    return bytes;
  }

  /** What was written, in order, as one moment saw it. Ranges of zeros are `zero: true`. */
  changedExtents(disk: string) {
    return changedExtents(this.#layer, this.#diskNumber(disk));
  }

  /**
   * Writes all disks and configuration files into a new saveset, as one moment saw them, while the
   * clone is in use; the caller seals it. Costs what was written.
   */
  async sealInto(
    writer: SavesetWriter,
    blockBytes: number,
    options?: SealOptions,
  ): Promise<SealedContent> {
    const disks = await sealDisks(this.#layer, this.record, writer, blockBytes, options);
    const files: { name: string; bytes: Buffer }[] = [];
    for (const name of this.record.files) {
      const path = `${this.record.folder}/${name}`;
      const directory = this.#table.node(this.#resolve(path).directory);
      if (directory?.entries.has(name)) files.push({ name, bytes: await this.readFile(path) });
    }
    for (const { name, bytes } of files) await writer.file(name, bytes);
    return { disks, files };
  }

  /** Writes a disk as a sparse raw file, as one moment sees it. */
  async exportRaw(disk: string, path: string, options?: SealOptions): Promise<void> {
    await exportRaw(this.#layer, this.#diskNumber(disk), this.#around.files, path, options);
  }

  /** Everything durable, files let go; the clone can be opened again. */
  async close(): Promise<void> {
    try {
      await this.#plain.close();
      await this.#table.close();
    } finally {
      await this.#layer.close();
      for (const base of this.#bases) await base.close();
    }
  }

  get directory(): string {
    return this.#directory;
  }

  #diskNumber(name: string): number {
    const number = this.record.disks.findIndex((disk) => disk.name === name);
    if (number < 0) throw new RouseError('not-found', `the clone has no disk ${name}`);
    return number;
  }

  #resolve(path: string): { directory: FileId; name: string } {
    const names = path.split('/').filter((part) => part !== '');
    const name = names.pop();
    let directory: FileId = this.#fileSystem.root;
    for (const part of names) {
      const entry = this.#table.node(directory)?.entries.get(part);
      if (entry === undefined) throw new RouseError('not-found', `there is no folder ${part}`);
      directory = entry.id;
    }
    if (name === undefined || name === '.' || name === '..') {
      throw new RouseError('bad-request', `${path} names no file`);
    }
    return { directory, name };
  }
}

const newSuffix = '.new';
const goneSuffix = '.gone';
const smallFileBytesMax = 16 * 1024 * 1024;

function checkId(cloneId: string): void {
  if (
    /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$/.test(cloneId) &&
    !cloneId.endsWith(newSuffix) &&
    !cloneId.endsWith(goneSuffix)
  )
    return;
  throw new RouseError('bad-request', `${JSON.stringify(cloneId)} is no id of a clone`);
}

function checkSpec(spec: NewClone): void {
  checkId(spec.cloneId);
  const names = [
    spec.folder,
    ...spec.disks.map(({ name }) => name),
    ...spec.files.map(({ name }) => name),
  ];
  for (const name of names) {
    const bad = name === '' || name === '.' || name === '..' || /[/\0]/.test(name);
    if (bad || Buffer.byteLength(flatName(name)) > 255) {
      throw new RouseError('bad-request', `${JSON.stringify(name)} cannot name a file`);
    }
  }
  if (spec.disks.length > datastoreLimits.disksMax) {
    throw new RouseError('bad-request', `more than ${datastoreLimits.disksMax} disks`);
  }
}

async function removeTree(files: Files, path: string): Promise<void> {
  const stat = await files.stat(path);
  if (stat === undefined) return;
  if (!stat.isDirectory) return files.remove(path);
  for (const name of await files.list(path)) await removeTree(files, `${path}/${name}`);
  await files.removeDirectory(path);
}

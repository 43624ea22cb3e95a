/**
 * One export as the NFS room sees it: the files of a clone. Names and attributes come from the
 * file table, bytes of plain files from the plain area, bytes of disks from the vault and the
 * write layer.
 *
 * Disks. Their size is fixed: SETATTR of another size is refused (INVAL). They may be renamed. They
 * may be removed, as a hypervisor does with its source after a relocation: the name goes, blocks
 * and writes stay with the clone until it is discarded, so it can still be sealed.
 *
 * Durability. A change of names or attributes is durable before it is answered. Bytes are as the
 * write asked. The times of a file that writes changed become durable with a FILE_SYNC write of a
 * plain file, and with the bytes themselves for a disk.
 *
 * Concurrency. Changes of the table are single synchronous steps, so no locks: what is checked
 * and what is changed belong to one turn of the event loop.
 */
import type { MaybePromise } from '../lib/maybe-promise.ts';
import { isPromise } from '../lib/maybe-promise.ts';
import { datastoreLimits } from '../limits.ts';
import {
  NfsError,
  NfsStatus,
  Stable,
  type AttributeChange,
  type Attributes,
  type Caller,
  type CreateHow,
  type DirectoryPage,
  type FileId,
  type FileSystem,
  type NfsTime,
  type ReadResult,
  type Space,
  type WriteResult,
} from '../nfs/file-system.ts';
import { accessOf, checkLength, checkName, isDots, toNfsError } from './export-names.ts';
import type { FileNode, NodeRecord } from './file-nodes.ts';
import type { FileTable, TableChange } from './file-table.ts';
import {
  changed,
  checkReplace,
  common,
  laterTimes,
  rethrow,
  sameTime,
  sizeOf,
  touched,
} from './node-changes.ts';
import { PlainContent } from './plain-content.ts';
import type { PlainFiles } from './plain-files.ts';
import type { TimeSource } from './time-source.ts';
import type { WriteLayer } from './write-layer.ts';

export interface ExportParts {
  readonly table: FileTable;
  readonly plain: PlainFiles;
  readonly layer: WriteLayer;
  readonly times: TimeSource;
  readonly disks: readonly { readonly sizeBytes: number }[];
  readonly fsid: bigint;
  /** The same for all files of the clone: handles of an earlier clone of this name are stale. */
  readonly generation: number;
  readonly space: () => Promise<{ readonly totalBytes: number; readonly freeBytes: number }>;
}

export class ExportFileSystem implements FileSystem {
  readonly root: FileId = 1;
  readonly fsid: bigint;
  readonly #parts: ExportParts;
  readonly #table: FileTable;
  readonly #content: PlainContent;
  #lastWritten: Promise<WriteResult> | undefined;
  #lastAnswer: Promise<WriteResult> = Promise.resolve({ committed: Stable.fileSync });

  constructor(parts: ExportParts) {
    this.#parts = parts;
    this.#table = parts.table;
    this.#content = new PlainContent(parts);
    this.fsid = parts.fsid;
  }

  get writeVerifier(): bigint {
    return this.#parts.layer.writeVerifier;
  }

  generation(file: FileId): number | undefined {
    return this.#table.node(file) === undefined ? undefined : this.#parts.generation;
  }

  attributes(file: FileId): MaybePromise<Attributes> {
    const node = this.#node(file);
    if (node.record.kind === 'file' && node.sizeBytes === undefined) return this.#measured(node);
    return this.#attributesOf(node);
  }

  async setAttributes(
    file: FileId,
    change: AttributeChange,
    guardCtime?: NfsTime,
  ): Promise<Attributes> {
    return this.#answer(async () => {
      const node = this.#node(file);
      if (guardCtime !== undefined && !sameTime(guardCtime, this.#attributesOf(node).changed)) {
        throw new NfsError(NfsStatus.notSync, 'changed since');
      }
      if (change.sizeBytes !== undefined) await this.#resize(node, change.sizeBytes);
      this.#change([{ put: changed(node.record, change, this.#parts.times.next()) }]);
      await this.#table.durable();
      return this.attributes(file);
    });
  }

  lookup(directory: FileId, name: string): FileId {
    const node = this.#directory(directory);
    checkLength(name);
    if (name === '.') return directory;
    if (name === '..') return node.record.parent ?? this.root;
    return this.#entry(node, name).id;
  }

  access(file: FileId, wanted: number, caller: Caller): number {
    return accessOf(this.#node(file).record, wanted, caller);
  }

  readLink(file: FileId): string {
    const { target } = this.#node(file).record;
    if (target === undefined) throw new NfsError(NfsStatus.inval, 'not a symbolic link');
    return target;
  }

  read(file: FileId, offset: number, target: Buffer): MaybePromise<ReadResult> {
    const node = this.#bytesOf(file);
    const { disk } = node.record;
    if (disk === undefined) return this.#content.read(node, offset, target);
    const size = this.#diskSize(disk);
    const bytes = Math.max(0, Math.min(target.length, size - offset));
    const result = { bytes, eof: offset + bytes >= size };
    if (bytes === 0) return result;
    try {
      const part = bytes === target.length ? target : target.subarray(0, bytes);
      const done = this.#parts.layer.read(disk, offset, part);
      return isPromise(done) ? done.then(() => result, rethrow) : result;
    } catch (error) {
      throw toNfsError(error);
    }
  }

  write(file: FileId, offset: number, data: Buffer, stable: Stable): MaybePromise<WriteResult> {
    const node = this.#bytesOf(file);
    const { disk } = node.record;
    if (disk === undefined) return this.#content.write(node, offset, data, stable);
    if (offset + data.length > this.#diskSize(disk)) {
      throw new NfsError(NfsStatus.fbig, 'beyond the end of the disk');
    }
    const written = this.#parts.layer.write(disk, offset, data, stable !== Stable.unstable);
    // All writes of one moment wait for the same: so do their callers.
    if (written !== this.#lastWritten) {
      this.#lastWritten = written;
      this.#lastAnswer = written.catch(rethrow);
    }
    return this.#lastAnswer;
  }

  async commit(file: FileId, _offset: number, _length: number): Promise<WriteResult> {
    return this.#answer(async () => {
      const node = this.#bytesOf(file);
      if (node.record.disk !== undefined) return this.#parts.layer.commit();
      return this.#content.commit(node);
    });
  }

  async create(directory: FileId, name: string, how: CreateHow): Promise<FileId> {
    return this.#answer(async () => {
      const parent = this.#directory(directory);
      checkName(name);
      const existing = isDots(name) ? { id: directory } : parent.entries.get(name);
      if (existing !== undefined) return this.#createAgain(existing.id, how);
      const extra = how.mode === 'exclusive' ? { verifier: String(how.verifier) } : {};
      const wanted = how.mode === 'exclusive' ? {} : how.change;
      const id = this.#make(parent, name, 'file', { mode: 0o644, ...wanted }, extra);
      const size = how.mode === 'exclusive' ? undefined : how.change.sizeBytes;
      this.#node(id).sizeBytes = 0;
      if (size !== undefined && size > 0) await this.#resize(this.#node(id), size);
      await this.#table.durable();
      return id;
    });
  }

  async makeDirectory(directory: FileId, name: string, change: AttributeChange): Promise<FileId> {
    return this.#answer(async () => {
      const parent = this.#directory(directory);
      this.#checkFree(parent, name);
      const id = this.#make(parent, name, 'directory', { mode: 0o755, ...change }, {});
      await this.#table.durable();
      return id;
    });
  }

  async makeSymlink(
    directory: FileId,
    name: string,
    target: string,
    change: AttributeChange,
  ): Promise<FileId> {
    return this.#answer(async () => {
      const parent = this.#directory(directory);
      this.#checkFree(parent, name);
      const id = this.#make(parent, name, 'symlink', { mode: 0o777, ...change }, { target });
      await this.#table.durable();
      return id;
    });
  }

  async remove(directory: FileId, name: string): Promise<void> {
    return this.#answer(async () => {
      const parent = this.#directory(directory);
      checkName(name);
      if (isDots(name)) throw new NfsError(NfsStatus.inval, `${name} cannot be removed`);
      const node = this.#node(this.#entry(parent, name).id);
      if (node.record.kind === 'directory') throw new NfsError(NfsStatus.isdir, 'is a directory');
      const now = this.#parts.times.next();
      const unlink = { directory, name };
      this.#change([{ unlink }, ...this.#unlinked(node, now), touched(parent, now)]);
      await this.#table.durable();
      await this.#forget(node);
    });
  }

  async removeDirectory(directory: FileId, name: string): Promise<void> {
    return this.#answer(async () => {
      const parent = this.#directory(directory);
      checkName(name);
      if (name === '.') throw new NfsError(NfsStatus.inval, '. cannot be removed');
      if (name === '..') throw new NfsError(NfsStatus.exist, '.. cannot be removed');
      const node = this.#node(this.#entry(parent, name).id);
      if (node.record.kind !== 'directory') throw new NfsError(NfsStatus.notdir, 'not a directory');
      if (node.entries.size > 0) throw new NfsError(NfsStatus.notempty, 'not empty');
      const now = this.#parts.times.next();
      const { id } = node.record;
      this.#change([{ unlink: { directory, name } }, { drop: id }, touched(parent, now, -1)]);
      await this.#table.durable();
    });
  }

  async rename(from: FileId, fromName: string, to: FileId, toName: string): Promise<void> {
    return this.#answer(async () => {
      const source = this.#directory(from);
      const target = this.#directory(to);
      checkName(fromName);
      checkName(toName);
      if (isDots(fromName) || isDots(toName)) throw new NfsError(NfsStatus.inval, 'not a name');
      const node = this.#node(this.#entry(source, fromName).id);
      const entry = target.entries.get(toName);
      const replaced = entry === undefined ? undefined : this.#node(entry.id);
      // Two links to one file: nothing happens (RFC 1813 3.3.14).
      if (replaced === node) return;
      if (replaced !== undefined) checkReplace(node, replaced);
      this.#checkNotBelow(node, target);
      this.#change(this.#renaming(source, fromName, target, toName, node, replaced));
      await this.#table.durable();
      if (replaced !== undefined) await this.#forget(replaced);
    });
  }

  async link(file: FileId, directory: FileId, name: string): Promise<void> {
    return this.#answer(async () => {
      const node = this.#node(file);
      const parent = this.#directory(directory);
      if (node.record.kind === 'directory') throw new NfsError(NfsStatus.isdir, 'is a directory');
      this.#checkFree(parent, name);
      if (node.record.links >= datastoreLimits.linksMax) {
        throw new NfsError(NfsStatus.mlink, 'too many links');
      }
      const now = this.#parts.times.next();
      const record = { ...node.record, links: node.record.links + 1, changed: now };
      const link = { directory, name, id: file, cookie: parent.nextCookie };
      this.#change([{ put: record }, { link }, touched(parent, now)]);
      await this.#table.durable();
    });
  }

  readDirectory(directory: FileId, cookie: bigint, limit: number): DirectoryPage {
    const node = this.#directory(directory);
    const entries = [];
    if (cookie < 1n && limit > 0) entries.push({ fileId: directory, name: '.', cookie: 1n });
    if (cookie < 2n && entries.length < limit) {
      entries.push({ fileId: node.record.parent ?? this.root, name: '..', cookie: 2n });
    }
    const room = limit - entries.length;
    const found = node.after(Number(cookie), room + 1);
    for (const entry of found.slice(0, room)) {
      entries.push({ fileId: entry.id, name: entry.name, cookie: BigInt(entry.cookie) });
    }
    return { entries, eof: found.length <= room };
  }

  parent(directory: FileId): FileId {
    return this.#directory(directory).record.parent ?? this.root;
  }

  async space(): Promise<Space> {
    return this.#answer(async () => {
      const { totalBytes, freeBytes } = await this.#parts.space();
      const totalFiles = datastoreLimits.filesMax;
      return { totalBytes, freeBytes, totalFiles, freeFiles: totalFiles - this.#table.size };
    });
  }

  async #answer<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw toNfsError(error);
    }
  }

  #node(file: FileId): FileNode {
    const node = this.#table.node(file);
    if (node === undefined) throw new NfsError(NfsStatus.stale, `no file ${file}`);
    return node;
  }

  #directory(file: FileId): FileNode {
    const node = this.#node(file);
    if (node.record.kind !== 'directory') throw new NfsError(NfsStatus.notdir, 'not a directory');
    return node;
  }

  /** A file whose bytes can be read and written. */
  #bytesOf(file: FileId): FileNode {
    const node = this.#node(file);
    if (node.record.kind === 'directory') throw new NfsError(NfsStatus.isdir, 'is a directory');
    if (node.record.kind === 'symlink') throw new NfsError(NfsStatus.inval, 'is a symbolic link');
    return node;
  }

  #entry(directory: FileNode, name: string): { readonly id: FileId } {
    const entry = directory.entries.get(name);
    if (entry === undefined) throw new NfsError(NfsStatus.noent, `no ${name.slice(0, 80)}`);
    return entry;
  }

  #checkFree(parent: FileNode, name: string): void {
    checkName(name);
    if (isDots(name) || parent.entries.has(name)) {
      throw new NfsError(NfsStatus.exist, `${name.slice(0, 80)} exists`);
    }
  }

  #change(changes: readonly TableChange[]): void {
    this.#table.change(changes);
  }

  #diskSize(disk: number): number {
    return this.#parts.disks[disk]?.sizeBytes ?? 0;
  }

  /** Makes the node and its name in one change. */
  #make(
    parent: FileNode,
    name: string,
    kind: 'file' | 'directory' | 'symlink',
    change: AttributeChange,
    extra: { readonly verifier?: string; readonly target?: string },
  ): FileId {
    if (this.#table.size >= datastoreLimits.filesMax) {
      throw new NfsError(NfsStatus.nospc, 'too many files in this export');
    }
    const now = this.#parts.times.next();
    const id = this.#table.nextId;
    const directory = parent.record.id;
    const times = { accessed: now, modified: now, changed: now };
    const base = { id, kind, mode: 0, uid: 0, gid: 0, links: kind === 'directory' ? 2 : 1 };
    const below = kind === 'directory' ? { parent: directory } : {};
    const record: NodeRecord = changed({ ...base, ...times, ...below, ...extra }, change, now);
    const link = { directory, name, id, cookie: parent.nextCookie };
    this.#change([{ put: record }, { link }, touched(parent, now, kind === 'directory' ? 1 : 0)]);
    return id;
  }

  async #createAgain(id: FileId, how: CreateHow): Promise<FileId> {
    const node = this.#node(id);
    if (how.mode === 'exclusive') {
      if (node.record.verifier === String(how.verifier)) return id;
      throw new NfsError(NfsStatus.exist, 'exists');
    }
    if (how.mode === 'guarded') throw new NfsError(NfsStatus.exist, 'exists');
    if (node.record.kind === 'directory') throw new NfsError(NfsStatus.isdir, 'is a directory');
    if (node.record.kind === 'symlink') throw new NfsError(NfsStatus.exist, 'exists');
    if (how.change.sizeBytes !== undefined) await this.#resize(node, how.change.sizeBytes);
    await this.#table.durable();
    return id;
  }

  /** What becomes of a node that loses one name. */
  #unlinked(node: FileNode, now: NfsTime): TableChange[] {
    const links = node.record.links - 1;
    if (links <= 0) return [{ drop: node.record.id }];
    return [{ put: { ...node.record, links, changed: now } }];
  }

  async #forget(node: FileNode): Promise<void> {
    const { id, kind } = node.record;
    if (kind === 'file' && this.#table.node(id) === undefined) await this.#parts.plain.remove(id);
  }

  #renaming(
    source: FileNode,
    fromName: string,
    target: FileNode,
    toName: string,
    node: FileNode,
    replaced: FileNode | undefined,
  ): TableChange[] {
    const now = this.#parts.times.next();
    const from = source.record.id;
    const to = target.record.id;
    const isDirectory = node.record.kind === 'directory';
    const changes: TableChange[] = [{ unlink: { directory: from, name: fromName } }];
    if (replaced !== undefined) {
      changes.push({ unlink: { directory: to, name: toName } });
      const gone = replaced.record.kind === 'directory';
      changes.push(...(gone ? [{ drop: replaced.record.id }] : this.#unlinked(replaced, now)));
    }
    changes.push({
      link: { directory: to, name: toName, id: node.record.id, cookie: target.nextCookie },
    });
    const moved = { ...node.record, changed: now, ...(isDirectory ? { parent: to } : {}) };
    changes.push({ put: moved });
    const left = isDirectory ? -1 : 0;
    const came = (isDirectory ? 1 : 0) - (replaced?.record.kind === 'directory' ? 1 : 0);
    if (source === target) changes.push(touched(source, now, left + came));
    else changes.push(touched(source, now, left), touched(target, now, came));
    return changes;
  }

  /** A directory cannot be moved into itself. */
  #checkNotBelow(node: FileNode, target: FileNode): void {
    for (let at = target; ; at = this.#node(at.record.parent ?? this.root)) {
      if (at === node) throw new NfsError(NfsStatus.inval, 'a directory below itself');
      if (at.record.id === this.root) return;
    }
  }

  #attributesOf(node: FileNode): Attributes {
    const { record } = node;
    const { disk } = record;
    if (disk === undefined) {
      return {
        ...common(record),
        kind: record.kind === 'disk' ? 'file' : record.kind,
        sizeBytes: sizeOf(node),
        usedBytes: record.kind === 'file' ? node.allocatedBytes : sizeOf(node),
      };
    }
    // Asked for with every READ and twice with every WRITE. Whatever changes is a new object.
    const written = this.#parts.layer.modified(disk);
    const { shown } = node;
    if (shown?.record === record && shown.written === written) return shown.attributes;
    const sizeBytes = this.#diskSize(disk);
    const times = written === undefined ? {} : laterTimes(record, written);
    // Said to be allocated in full: some tools take a file of few blocks for one of zeros.
    const sizes = { sizeBytes, usedBytes: sizeBytes };
    const attributes: Attributes = { ...common(record), ...times, kind: 'file', ...sizes };
    node.shown = { record, written, attributes };
    return attributes;
  }

  async #measured(node: FileNode): Promise<Attributes> {
    await this.#content.measure(node);
    return this.#attributesOf(node);
  }

  async #resize(node: FileNode, sizeBytes: number): Promise<void> {
    const { kind, disk } = node.record;
    if (kind === 'directory') throw new NfsError(NfsStatus.isdir, 'is a directory');
    if (kind === 'symlink') throw new NfsError(NfsStatus.inval, 'is a symbolic link');
    if (disk === undefined) return this.#content.resize(node, sizeBytes);
    if (sizeBytes !== this.#diskSize(disk)) {
      throw new NfsError(NfsStatus.inval, 'a disk keeps its size');
    }
  }
}

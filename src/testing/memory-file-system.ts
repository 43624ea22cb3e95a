import type { Clock } from '../lib/clock.ts';
import { isPromise, type MaybePromise } from '../lib/maybe-promise.ts';
import type { AttributeChange, Attributes, Caller, CreateHow } from '../nfs/file-system.ts';
import type { DirectoryEntry, DirectoryPage, FileId, FileSystem } from '../nfs/file-system.ts';
import { NfsError, NfsStatus, type NfsTime, type ReadResult } from '../nfs/file-system.ts';
import { type Space, Stable, type WriteResult } from '../nfs/file-system.ts';

/**
 * A whole file system in memory, to test servers against: every rule of the port, nothing durable.
 * `lateFileSystem` wraps any file system so that every answer comes one macrotask later, which
 * brings out mistakes about the order of answers and about memory used again too early.
 */
interface Node {
  readonly id: FileId;
  readonly kind: Attributes['kind'];
  mode: number;
  uid: number;
  gid: number;
  links: number;
  bytes: Buffer;
  sizeBytes: number;
  target: string;
  readonly entries: Map<string, { id: FileId; cookie: bigint }>;
  parent: FileId;
  verifier: bigint | undefined;
  accessed: NfsTime;
  modified: NfsTime;
  changed: NfsTime;
}

export interface MemoryFileSystemOptions {
  readonly clock: Clock;
  readonly fsid?: bigint;
  /** Writes beyond this fail with NOSPC. */
  readonly capacityBytes?: number;
}

const BLOCK_BYTES = 4_096;
/** ACCESS3_* (RFC 1813 3.3.4). */
const READ_BITS = 0x01 | 0x02;
const WRITE_BITS = 0x04 | 0x08 | 0x10;
const EXECUTE_BITS = 0x20 | 0x02;

export class MemoryFileSystem implements FileSystem {
  readonly root: FileId = 1;
  readonly fsid: bigint;
  writeVerifier = 0x0102_0304_0506_0708n;
  /** How often each method was called: proves that a repeated call did not run twice. */
  readonly calls = new Map<string, number>();
  readonly #clock: Clock;
  readonly #capacityBytes: number;
  readonly #nodes = new Map<FileId, Node>();
  readonly #generation = new Map<FileId, number>();
  #nextId = 2;
  #nextCookie = 3n;
  #lastTick = 0;

  constructor(options: MemoryFileSystemOptions) {
    this.#clock = options.clock;
    this.fsid = options.fsid ?? 0x526f_7573n;
    this.#capacityBytes = options.capacityBytes ?? 1 << 30;
    const root = this.#make('directory', 0o755, 1);
    root.links = 2;
  }

  generation(file: FileId): number | undefined {
    return this.#nodes.has(file) ? (this.#generation.get(file) ?? 1) : undefined;
  }

  /** Makes all handles of the file stale, as when its id is used for another file. */
  renew(file: FileId): void {
    this.#generation.set(file, (this.#generation.get(file) ?? 1) + 1);
  }

  attributes(file: FileId): Attributes {
    this.#count('attributes');
    const node = this.#node(file);
    return {
      kind: node.kind,
      mode: node.mode,
      links: node.links,
      uid: node.uid,
      gid: node.gid,
      sizeBytes: node.sizeBytes,
      usedBytes: Math.ceil(node.sizeBytes / BLOCK_BYTES) * BLOCK_BYTES,
      fileId: node.id,
      accessed: node.accessed,
      modified: node.modified,
      changed: node.changed,
    };
  }

  setAttributes(file: FileId, change: AttributeChange, guardCtime?: NfsTime): Attributes {
    this.#count('setAttributes');
    const node = this.#node(file);
    if (guardCtime !== undefined && !isSameTime(guardCtime, node.changed)) {
      throw new NfsError(NfsStatus.notSync);
    }
    this.#apply(node, change);
    return this.attributes(file);
  }

  lookup(directory: FileId, name: string): FileId {
    this.#count('lookup');
    const entry = this.#directory(directory).entries.get(name);
    if (entry === undefined) throw new NfsError(NfsStatus.noent);
    return entry.id;
  }

  access(file: FileId, wanted: number, caller: Caller): number {
    this.#count('access');
    const node = this.#node(file);
    if (caller.uid === 0) return wanted;
    const inGroup = caller.gid === node.gid || caller.groups.includes(node.gid);
    const shift = caller.uid === node.uid ? 6 : inGroup ? 3 : 0;
    const bits = (node.mode >> shift) & 7;
    let granted = 0;
    if (bits & 4) granted |= READ_BITS;
    if (bits & 2) granted |= WRITE_BITS;
    if (bits & 1) granted |= EXECUTE_BITS;
    return granted & wanted;
  }

  readLink(file: FileId): string {
    const node = this.#node(file);
    if (node.kind !== 'symlink') throw new NfsError(NfsStatus.inval);
    return node.target;
  }

  read(file: FileId, offset: number, target: Buffer): MaybePromise<ReadResult> {
    this.#count('read');
    const node = this.#file(file);
    const bytes = Math.max(0, Math.min(target.length, node.sizeBytes - offset));
    if (bytes > 0) node.bytes.copy(target, 0, offset, offset + bytes);
    return { bytes, eof: offset + bytes >= node.sizeBytes };
  }

  write(file: FileId, offset: number, data: Buffer, stable: Stable): MaybePromise<WriteResult> {
    this.#count('write');
    const node = this.#file(file);
    if (data.length > 0) {
      this.#resize(node, Math.max(node.sizeBytes, offset + data.length));
      data.copy(node.bytes, offset);
    }
    this.#touch(node);
    return { committed: stable };
  }

  commit(file: FileId): MaybePromise<WriteResult> {
    this.#count('commit');
    this.#file(file);
    return { committed: Stable.fileSync };
  }

  create(directory: FileId, name: string, how: CreateHow): FileId {
    this.#count('create');
    const parent = this.#directory(directory);
    const found = parent.entries.get(name);
    if (found === undefined) {
      const made = this.#make('file', 0o644, undefined);
      if (how.mode === 'exclusive') made.verifier = how.verifier;
      this.#enter(parent, name, made);
      if (how.mode !== 'exclusive') this.#apply(made, how.change);
      return made.id;
    }
    const node = this.#node(found.id);
    if (how.mode === 'exclusive' && node.verifier === how.verifier) return node.id;
    if (how.mode !== 'unchecked' || node.kind !== 'file') throw new NfsError(NfsStatus.exist);
    if (how.change.sizeBytes !== undefined) this.#resize(node, how.change.sizeBytes);
    return node.id;
  }

  makeDirectory(directory: FileId, name: string, change: AttributeChange): FileId {
    this.#count('makeDirectory');
    const parent = this.#free(directory, name);
    const made = this.#make('directory', 0o755, parent.id);
    made.links = 1;
    this.#enter(parent, name, made);
    parent.links++;
    this.#apply(made, change);
    return made.id;
  }

  makeSymlink(directory: FileId, name: string, target: string, change: AttributeChange): FileId {
    this.#count('makeSymlink');
    const parent = this.#free(directory, name);
    const made = this.#make('symlink', 0o777, undefined);
    made.target = target;
    made.sizeBytes = Buffer.byteLength(target);
    this.#enter(parent, name, made);
    if (change.uid !== undefined) made.uid = change.uid;
    if (change.gid !== undefined) made.gid = change.gid;
    return made.id;
  }

  remove(directory: FileId, name: string): void {
    this.#count('remove');
    const parent = this.#directory(directory);
    const node = this.#node(this.lookup(directory, name));
    if (node.kind === 'directory') throw new NfsError(NfsStatus.isdir);
    this.#leave(parent, name, node);
  }

  removeDirectory(directory: FileId, name: string): void {
    this.#count('removeDirectory');
    const parent = this.#directory(directory);
    const node = this.#node(this.lookup(directory, name));
    if (node.kind !== 'directory') throw new NfsError(NfsStatus.notdir);
    if (node.entries.size > 0) throw new NfsError(NfsStatus.notempty);
    node.links = 1;
    this.#leave(parent, name, node);
    parent.links--;
  }

  rename(from: FileId, fromName: string, to: FileId, toName: string): void {
    this.#count('rename');
    const source = this.#directory(from);
    const target = this.#directory(to);
    const node = this.#node(this.lookup(from, fromName));
    const there = target.entries.get(toName);
    if (there?.id === node.id) return;
    if (node.kind === 'directory' && this.#isInside(to, node.id)) {
      throw new NfsError(NfsStatus.inval);
    }
    if (there !== undefined) this.#replace(to, toName, node, this.#node(there.id));
    source.entries.delete(fromName);
    this.#touch(source);
    node.links--;
    if (node.kind === 'directory') {
      source.links--;
      target.links++;
      node.parent = target.id;
    }
    this.#enter(target, toName, node);
  }

  link(file: FileId, directory: FileId, name: string): void {
    this.#count('link');
    const node = this.#node(file);
    if (node.kind === 'directory') throw new NfsError(NfsStatus.isdir);
    this.#enter(this.#free(directory, name), name, node);
  }

  readDirectory(directory: FileId, cookie: bigint, limit: number): MaybePromise<DirectoryPage> {
    this.#count('readDirectory');
    const node = this.#directory(directory);
    const all: DirectoryEntry[] = [
      { fileId: node.id, name: '.', cookie: 1n },
      { fileId: this.parent(directory), name: '..', cookie: 2n },
    ];
    for (const [name, { id, cookie }] of node.entries) all.push({ fileId: id, name, cookie });
    const rest = all.filter((entry) => entry.cookie > cookie);
    rest.sort((a, b) => (a.cookie < b.cookie ? -1 : 1));
    return { entries: rest.slice(0, limit), eof: rest.length <= limit };
  }

  parent(directory: FileId): FileId {
    const node = this.#directory(directory);
    return node.parent;
  }

  space(): Space {
    let used = 0;
    for (const node of this.#nodes.values()) used += node.sizeBytes;
    return {
      totalBytes: this.#capacityBytes,
      freeBytes: Math.max(0, this.#capacityBytes - used),
      totalFiles: 1_000_000,
      freeFiles: 1_000_000 - this.#nodes.size,
    };
  }

  // -- for tests --------------------------------------------------------------------------------

  /** Puts a file at a path, its directories included. */
  put(path: string, bytes: Buffer): FileId {
    const names = path.split('/').filter((name) => name !== '');
    const last = names.pop() ?? '';
    let at = this.root;
    for (const name of names) {
      const found = this.#directory(at).entries.get(name);
      at = found?.id ?? this.makeDirectory(at, name, {});
    }
    const file = this.create(at, last, { mode: 'unchecked', change: {} });
    const node = this.#node(file);
    node.bytes = Buffer.from(bytes);
    node.sizeBytes = bytes.length;
    return file;
  }

  contents(path: string): Buffer {
    let at = this.root;
    for (const name of path.split('/').filter((part) => part !== '')) at = this.lookup(at, name);
    const node = this.#node(at);
    return Buffer.from(node.bytes.subarray(0, node.sizeBytes));
  }

  // -- below ------------------------------------------------------------------------------------

  #count(method: string): void {
    this.calls.set(method, (this.calls.get(method) ?? 0) + 1);
  }

  /** Strictly later than the last: a ctime that does not move would hide a change. */
  #now(): NfsTime {
    const tick = Math.max(Math.floor(this.#clock.now() * 1000), this.#lastTick + 1);
    this.#lastTick = tick;
    return { seconds: Math.floor(tick / 1e6), nanoseconds: (tick % 1e6) * 1000 };
  }

  #make(kind: Node['kind'], mode: number, parent: FileId | undefined): Node {
    const id = kind === 'directory' && parent === 1 && this.#nodes.size === 0 ? 1 : this.#nextId++;
    const now = this.#now();
    const node: Node = {
      id,
      kind,
      mode,
      uid: 0,
      gid: 0,
      links: 0,
      bytes: Buffer.alloc(0),
      sizeBytes: 0,
      target: '',
      entries: new Map(),
      parent: parent ?? 0,
      verifier: undefined,
      accessed: now,
      modified: now,
      changed: now,
    };
    this.#nodes.set(id, node);
    return node;
  }

  #node(file: FileId): Node {
    const node = this.#nodes.get(file);
    if (node === undefined) throw new NfsError(NfsStatus.stale);
    return node;
  }

  #directory(file: FileId): Node {
    const node = this.#node(file);
    if (node.kind !== 'directory') throw new NfsError(NfsStatus.notdir);
    return node;
  }

  #file(file: FileId): Node {
    const node = this.#node(file);
    if (node.kind === 'directory') throw new NfsError(NfsStatus.isdir);
    if (node.kind !== 'file') throw new NfsError(NfsStatus.inval);
    return node;
  }

  #free(directory: FileId, name: string): Node {
    const node = this.#directory(directory);
    if (node.entries.has(name)) throw new NfsError(NfsStatus.exist);
    return node;
  }

  #enter(directory: Node, name: string, node: Node): void {
    directory.entries.set(name, { id: node.id, cookie: this.#nextCookie++ });
    node.links++;
    node.changed = this.#now();
    this.#touch(directory);
  }

  #leave(directory: Node, name: string, node: Node): void {
    directory.entries.delete(name);
    node.links--;
    node.changed = this.#now();
    this.#touch(directory);
    if (node.links <= 0) this.#nodes.delete(node.id);
  }

  #replace(directory: FileId, name: string, node: Node, there: Node): void {
    if (there.kind === 'directory') {
      if (node.kind !== 'directory') throw new NfsError(NfsStatus.exist);
      this.removeDirectory(directory, name);
    } else {
      if (node.kind === 'directory') throw new NfsError(NfsStatus.exist);
      this.remove(directory, name);
    }
  }

  #isInside(directory: FileId, ancestor: FileId): boolean {
    for (let at = directory; ; at = this.#node(at).parent) {
      if (at === ancestor) return true;
      if (at === this.root) return false;
    }
  }

  #apply(node: Node, change: AttributeChange): void {
    if (change.sizeBytes !== undefined) {
      if (node.kind === 'directory') throw new NfsError(NfsStatus.isdir);
      this.#resize(node, change.sizeBytes);
    }
    const now = this.#now();
    if (change.sizeBytes !== undefined) node.modified = now;
    if (change.mode !== undefined) node.mode = change.mode;
    if (change.uid !== undefined) node.uid = change.uid;
    if (change.gid !== undefined) node.gid = change.gid;
    if (change.accessed !== undefined) {
      node.accessed = change.accessed === 'server' ? now : change.accessed;
    }
    if (change.modified !== undefined) {
      node.modified = change.modified === 'server' ? now : change.modified;
    }
    node.changed = now;
  }

  #resize(node: Node, sizeBytes: number): void {
    if (sizeBytes > this.#capacityBytes) throw new NfsError(NfsStatus.nospc);
    if (sizeBytes > node.bytes.length) {
      const grown = Buffer.alloc(Math.max(sizeBytes, Math.min(node.bytes.length * 2, 1 << 28)));
      node.bytes.copy(grown, 0, 0, node.sizeBytes);
      node.bytes = grown;
    }
    if (sizeBytes < node.sizeBytes) node.bytes.fill(0, sizeBytes, node.sizeBytes);
    node.sizeBytes = sizeBytes;
  }

  #touch(node: Node): void {
    const now = this.#now();
    node.modified = now;
    node.changed = now;
  }
}

function isSameTime(a: NfsTime, b: NfsTime): boolean {
  return a.seconds === b.seconds && a.nanoseconds === b.nanoseconds;
}

const immediate = new Set<PropertyKey>(['root', 'fsid', 'writeVerifier', 'generation']);

/**
 * The same file system, answering everything one macrotask later. Reads fill their target late, and
 * writes take their data late, as the port allows.
 */
export function lateFileSystem(inner: FileSystem): FileSystem {
  return new Proxy(inner, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name, target);
      if (typeof value !== 'function') return value;
      if (immediate.has(name)) return value.bind(target);
      return (...values: unknown[]) => later(() => Reflect.apply(value, target, values));
    },
  });
}

async function later(work: () => unknown): Promise<unknown> {
  await new Promise((resolve) => setImmediate(resolve));
  const result = work();
  return isPromise(result) ? await result : result;
}

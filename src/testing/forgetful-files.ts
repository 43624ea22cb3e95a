import { RouseError } from '../errors.ts';
import type { Files, FileStat, OpenFile, OpenMode } from '../lib/files.ts';
import { FileNode, type FaultCheck } from './forgetful-content.ts';
import { DirectoryNode, namesOf } from './forgetful-names.ts';
import { SeededRandom } from './seeded-random.ts';

/**
 * The `Files` port in memory, as honest as a disk in a bad year. What was not synced is not safe:
 *
 * - `crash()` answers the file system as found after a power cut: each unsynced write is kept,
 *   dropped or torn at sectors of 512 bytes, later ones may survive without earlier ones, an
 *   unsynced size may be forgotten, and so may every name that no `syncDirectory` confirmed.
 * - `kill()` answers it as found after the death of the process: nothing handed over is lost, and
 *   nothing has become safer (a power cut after it may still take it).
 *
 * Both leave this instance dead: every later call fails, so what still runs in the old process
 * cannot touch the new one. Asynchronous calls take a random number of turns and overtake each
 * other. `readNow` says "not in memory" at random. The same seed and calls give the same answers.
 */
export class ForgetfulFiles implements Files {
  readonly random: SeededRandom;
  /** Bytes that fit, at 4 KiB a page; lower it to fill the disk. */
  capacityBytes: number;
  /** Calls that change something or sync, so far. */
  operations = 0;
  #root: DirectoryNode;
  #dead = false;
  #faults: Fault[] = [];
  #stopAt = Number.POSITIVE_INFINITY;
  #onStop: (() => void) | undefined;
  readonly #usage = { pages: 0 };

  constructor(seed: number, options: { readonly capacityBytes?: number } = {}) {
    this.random = new SeededRandom(seed);
    this.capacityBytes = options.capacityBytes ?? Number.POSITIVE_INFINITY;
    this.#root = new DirectoryNode();
  }

  /** The file system after a power cut. This instance is dead afterwards. */
  crash(): ForgetfulFiles {
    return this.#successor((root, random) => root.afterPowerCut(random));
  }

  /** The file system after the death of the process. This instance is dead afterwards. */
  kill(): ForgetfulFiles {
    return this.#successor((root) => root.copy(new Map()));
  }

  /**
   * The next `times` matching calls after `skip` of them fail with `code`. A failed sync behaves
   * as on Linux: what it should have written is kept or lost at random, and a later sync that
   * succeeds says nothing about it.
   */
  inject(fault: FaultSpec): void {
    this.#faults.push({ ...fault, skip: fault.skip ?? 0, times: fault.times ?? 1 });
  }

  /** Forgets all injected faults that have not happened. */
  heal(): void {
    this.#faults = [];
  }

  /**
   * The machine stops before its `operations`-th changing call from now: that call and all after
   * it fail and change nothing. Then take `crash()` or `kill()`.
   */
  stopAfter(operations: number, onStop?: () => void): void {
    this.#stopAt = this.operations + operations;
    this.#onStop = onStop;
  }

  get stopped(): boolean {
    return this.#dead || this.operations >= this.#stopAt;
  }

  get usedBytes(): number {
    return this.#usage.pages * 4096;
  }

  async open(path: string, mode: OpenMode): Promise<OpenFile> {
    await this.#turns();
    const { directory, name } = this.#parent(path);
    let node = directory.get(name);
    if (node === undefined) {
      if (mode === 'read') throw notFound(path);
      this.#change('open', path);
      node = new FileNode(this.#usage);
      directory.set(name, node);
    } else if (mode === 'create') {
      throw new RouseError('already-exists', `${path}: exists already`);
    }
    this.#check('open', path);
    if (!(node instanceof FileNode)) throw new RouseError('internal', `${path}: is a directory`);
    return new ForgetfulFile(path, node, this.#gate());
  }

  async rename(from: string, to: string): Promise<void> {
    await this.#turns();
    this.#change('rename', to);
    const source = this.#parent(from);
    const target = this.#parent(to);
    const node = source.directory.get(source.name);
    if (node === undefined) throw notFound(from);
    const replaced = target.directory.get(target.name);
    if (source.directory === target.directory) {
      source.directory.renameWithin(source.name, target.name, node);
    } else {
      target.directory.set(target.name, node);
      source.directory.delete(source.name);
    }
    if (replaced instanceof FileNode && replaced !== node) replaced.unlink();
  }

  async remove(path: string): Promise<void> {
    await this.#turns();
    this.#change('remove', path);
    const { directory, name } = this.#parent(path);
    const node = directory.get(name);
    if (!(node instanceof FileNode)) throw notFound(path);
    directory.delete(name);
    node.unlink();
  }

  async makeDirectory(path: string): Promise<void> {
    await this.#turns();
    this.#change('makeDirectory', path);
    let directory = this.#root;
    for (const name of namesOf(path)) {
      let next = directory.get(name);
      if (next === undefined) {
        next = new DirectoryNode();
        directory.set(name, next);
      }
      if (!(next instanceof DirectoryNode)) {
        throw new RouseError('already-exists', `${path}: ${name} is a file`);
      }
      directory = next;
    }
  }

  async removeDirectory(path: string): Promise<void> {
    await this.#turns();
    this.#change('removeDirectory', path);
    const { directory, name } = this.#parent(path);
    const node = directory.get(name);
    if (!(node instanceof DirectoryNode)) throw notFound(path);
    if (node.names().length > 0) throw new RouseError('internal', `${path}: is not empty`);
    directory.delete(name);
  }

  async list(path: string): Promise<string[]> {
    await this.#turns();
    this.#check('list', path);
    const node = this.#find(path);
    return node instanceof DirectoryNode ? node.names() : [];
  }

  async stat(path: string): Promise<FileStat | undefined> {
    await this.#turns();
    this.#check('stat', path);
    const node = this.#find(path);
    if (node === undefined) return undefined;
    if (node instanceof DirectoryNode) {
      return { sizeBytes: 0, allocatedBytes: 0, isDirectory: true, modifiedMs: 0 };
    }
    const { sizeBytes, allocatedBytes } = node;
    return { sizeBytes, allocatedBytes, isDirectory: false, modifiedMs: 0 };
  }

  async syncDirectory(path: string): Promise<void> {
    await this.#turns();
    const node = this.#find(path);
    if (!(node instanceof DirectoryNode)) throw notFound(path);
    this.#change('syncDirectory', path);
    node.sync();
  }

  async space(path: string): Promise<{ totalBytes: number; freeBytes: number }> {
    await this.#turns();
    this.#check('space', path);
    const totalBytes = Math.min(this.capacityBytes, 2 ** 50);
    return { totalBytes, freeBytes: Math.max(0, totalBytes - this.usedBytes) };
  }

  #successor(next: (root: DirectoryNode, random: SeededRandom) => DirectoryNode): ForgetfulFiles {
    const files = new ForgetfulFiles(this.random.below(2 ** 31), {
      capacityBytes: this.capacityBytes,
    });
    files.#root = next(this.#root, this.random);
    files.#root.adopt(files.#usage);
    this.#dead = true;
    return files;
  }

  #gate(): FaultCheck {
    return {
      random: this.random,
      change: (operation, path) => this.#change(operation, path),
      check: (operation, path) => this.#check(operation, path),
      turns: () => this.#turns(),
      stopped: () => this.#dead,
      freePages: () => Math.floor(this.capacityBytes / 4096) - this.#usage.pages,
    };
  }

  /** One to four turns of the event loop, or none, so that calls overtake each other. */
  async #turns(): Promise<void> {
    const turns = this.random.below(4);
    for (let i = 0; i < turns; i++) await new Promise<void>((resolve) => setImmediate(resolve));
  }

  #change(operation: FaultOperation, path: string): void {
    if (!this.#dead && this.operations >= this.#stopAt - 1) {
      this.#dead = true;
      this.#onStop?.();
    }
    this.operations++;
    this.#check(operation, path);
  }

  #check(operation: FaultOperation, path: string): void {
    if (this.#dead) throw new RouseError('io-error', `${path}: the machine has stopped`);
    for (const fault of this.#faults) {
      if (fault.operation !== operation) continue;
      if (fault.path !== undefined && !path.includes(fault.path)) continue;
      if (fault.times <= 0) continue;
      if (fault.skip-- > 0) continue;
      fault.times--;
      throw new RouseError(fault.code ?? 'io-error', `${path}: injected at ${operation}`);
    }
  }

  #find(path: string): FileNode | DirectoryNode | undefined {
    let node: FileNode | DirectoryNode | undefined = this.#root;
    for (const name of namesOf(path)) {
      if (!(node instanceof DirectoryNode)) return undefined;
      node = node.get(name);
    }
    return node;
  }

  #parent(path: string): { directory: DirectoryNode; name: string } {
    const names = namesOf(path);
    const name = names.pop();
    const directory = this.#find(names.join('/'));
    if (name === undefined || !(directory instanceof DirectoryNode)) throw notFound(path);
    return { directory, name };
  }
}

export type FaultOperation =
  | 'open'
  | 'read'
  | 'write'
  | 'sync'
  | 'truncate'
  | 'punch'
  | 'rename'
  | 'remove'
  | 'makeDirectory'
  | 'removeDirectory'
  | 'list'
  | 'stat'
  | 'space'
  | 'syncDirectory';

export interface FaultSpec {
  readonly operation: FaultOperation;
  /** Only paths that contain this. */
  readonly path?: string;
  /** `io-error` unless named. */
  readonly code?: 'io-error' | 'disk-full';
  /** How many matching calls fail; 1 unless named. */
  times?: number;
  /** How many matching calls succeed before. */
  skip?: number;
}

type Fault = FaultSpec & { times: number; skip: number };

/** One open file; every handle of one file sees the same bytes. */
class ForgetfulFile implements OpenFile {
  readonly #path: string;
  readonly #node: FileNode;
  readonly #gate: FaultCheck;
  #open = true;

  constructor(path: string, node: FileNode, gate: FaultCheck) {
    this.#path = path;
    this.#node = node;
    this.#gate = gate;
    node.handles++;
  }

  async read(target: Uint8Array, position: number): Promise<number> {
    await this.#gate.turns();
    this.#alive('read');
    return this.#node.read(target, position);
  }

  readNow(target: Uint8Array, position: number): number {
    this.#alive('read');
    if (this.#gate.random.chance(0.1)) return -1;
    return this.#node.read(target, position);
  }

  async write(buffers: readonly Uint8Array[], position: number): Promise<void> {
    await this.#gate.turns();
    this.writeNow(buffers, position);
  }

  writeUncached(buffers: readonly Uint8Array[], position: number): Promise<void> {
    return this.write(buffers, position);
  }

  writeNow(buffers: readonly Uint8Array[], position: number): void {
    this.#alive(undefined);
    this.#gate.change('write', this.#path);
    const bytes = buffers.length === 1 ? (buffers[0] ?? empty) : Buffer.concat(buffers);
    if (this.#node.pagesNeeded(position, bytes.length) > this.#gate.freePages()) {
      this.#writePart(bytes, position);
      throw new RouseError('disk-full', `${this.#path}: no space left`);
    }
    this.#node.write(bytes, position);
  }

  /** A full disk may take the first part of a write before it says no. */
  #writePart(bytes: Uint8Array, position: number): void {
    const part = bytes.subarray(0, this.#gate.random.below(bytes.length + 1));
    if (this.#node.pagesNeeded(position, part.length) > this.#gate.freePages()) return;
    this.#node.write(part, position);
  }

  async sync(): Promise<void> {
    this.#alive(undefined);
    const until = this.#node.pendingCount;
    const node = this.#node;
    await this.#gate.turns();
    try {
      this.#gate.change('sync', this.#path);
    } catch (error) {
      if (!this.#gate.stopped()) node.failSync(until, this.#gate.random);
      throw error;
    }
    node.sync(until);
  }

  async punch(position: number, length: number): Promise<void> {
    await this.#gate.turns();
    this.#alive(undefined);
    this.#gate.change('punch', this.#path);
    this.#node.punch(position, length);
  }

  async truncate(sizeBytes: number): Promise<void> {
    await this.#gate.turns();
    this.#alive(undefined);
    this.#gate.change('truncate', this.#path);
    this.#node.truncate(sizeBytes);
  }

  async size(): Promise<number> {
    await this.#gate.turns();
    this.#alive(undefined);
    return this.#node.sizeBytes;
  }

  async close(): Promise<void> {
    await this.#gate.turns();
    if (!this.#open) return;
    this.#open = false;
    this.#node.closeHandle();
  }

  #alive(operation: FaultOperation | undefined): void {
    if (!this.#open) throw new RouseError('internal', `${this.#path}: the file is closed`);
    if (operation !== undefined) this.#gate.check(operation, this.#path);
  }
}

const empty = new Uint8Array(0);

function notFound(path: string): RouseError {
  return new RouseError('not-found', `${path}: no such file or directory`);
}

/**
 * The names and attributes of the files of a clone, in memory and in one journal. Every change is
 * one line (checksum, JSON) that holds all of it: it happened or it did not. `durable` makes all
 * changes so far safe; many share one sync. The journal is written anew when the table is opened,
 * when it has grown, and after a failed sync, whose losses are thereby made good.
 *
 * After a power cut the lines that no sync covered may be torn in any order; they are dropped. So
 * that a line which rots on the disk is not taken for one of them, each sync leaves a mark behind the
 * lines that it made safe: a bad line before a mark's position is damage, and nothing is dropped.
 */
import { crc32 } from 'node:zlib';
import { isRouseError, RouseError } from '../errors.ts';
import type { Files, OpenFile } from '../lib/files.ts';
import { datastoreLimits } from '../limits.ts';
import type { FileId } from '../nfs/file-system.ts';
import { FileNode, type DirectoryEntryRecord, type NodeRecord } from './file-nodes.ts';
import { SharedWork } from './shared-work.ts';

export type TableChange =
  | { readonly put: NodeRecord }
  | { readonly drop: FileId }
  | { readonly link: DirectoryEntryRecord & { readonly directory: FileId } }
  | { readonly unlink: { readonly directory: FileId; readonly name: string } };

/** The journal was durable up to there when this line was written. */
interface DurableMark {
  readonly durable: number;
}

/** First line: how many lines follow that were written at once, and the next free id. */
interface Heading {
  readonly format: number;
  readonly lines: number;
  readonly nextId: number;
}

/** 2: with marks of what is durable. */
const format = 2;
const tableName = 'table';
const newTableName = 'table.new';

export class FileTable {
  readonly #files: Files;
  readonly #directory: string;
  readonly #nodes = new Map<FileId, FileNode>();
  #journal: OpenFile | undefined;
  #position = 0;
  /** Behind the last change; marks may follow. */
  #changedPosition = 0;
  #snapshotBytes = 0;
  /** What is in memory is not what the journal would give. */
  #rewriteNeeded = true;
  #syncedPosition = 0;
  /** Changes since the snapshot that is being written. */
  #meanwhile: Buffer[] | undefined;
  nextId = 2;
  readonly #syncs = new SharedWork(() => this.#sync());

  private constructor(files: Files, directory: string) {
    this.#files = files;
    this.#directory = directory;
  }

  /** A table with only the root directory (id 1); durable once the directory is. */
  static async create(files: Files, directory: string, root: NodeRecord): Promise<FileTable> {
    await files.makeDirectory(directory);
    const table = new FileTable(files, directory);
    table.#apply([{ put: root }]);
    await table.durable();
    return table;
  }

  static async open(files: Files, directory: string): Promise<FileTable> {
    const table = new FileTable(files, directory);
    await table.#load();
    await table.durable();
    return table;
  }

  get size(): number {
    return this.#nodes.size;
  }

  node(id: FileId): FileNode | undefined {
    return this.#nodes.get(id);
  }

  nodes(): IterableIterator<FileNode> {
    return this.#nodes.values();
  }

  /** All of it or, when this throws (`disk-full`), nothing. Not durable yet. */
  change(changes: readonly TableChange[]): void {
    const line = encodeLine(changes);
    if (this.#journal !== undefined && !this.#rewriteNeeded) {
      this.#journal.writeNow([line], this.#position);
      this.#position += line.length;
      this.#changedPosition = this.#position;
    }
    this.#meanwhile?.push(line);
    this.#apply(changes);
  }

  /** Resolves when everything changed so far survives a power cut. */
  durable(): Promise<void> {
    return this.#syncs.request();
  }

  async close(): Promise<void> {
    try {
      await this.durable();
    } finally {
      await this.#journal?.close();
    }
  }

  async #sync(): Promise<void> {
    if (this.#rewriteNeeded) return this.#rewrite();
    const grown = this.#position > datastoreLimits.tableJournalBytes;
    if (grown && this.#position > 2 * this.#snapshotBytes) {
      try {
        return await this.#rewrite();
      } catch (error) {
        // A full disk leaves the long journal, which says the same.
        if (!isRouseError(error, 'disk-full') || this.#rewriteNeeded) throw error;
      }
    }
    const position = this.#position;
    if (this.#changedPosition <= this.#syncedPosition) return;
    try {
      await this.#journal?.sync();
      this.#syncedPosition = position;
    } catch (error) {
      this.#rewriteNeeded = true;
      throw error;
    }
    this.#mark();
  }

  /** Evidence for a later opening; nobody waits for it, and without it no less is safe. */
  #mark(): void {
    if (this.#journal === undefined || this.#rewriteNeeded) return;
    const mark: DurableMark = { durable: this.#syncedPosition };
    const line = encodeLine(mark);
    try {
      this.#journal.writeNow([line], this.#position);
      this.#position += line.length;
    } catch {
      // A full disk: the next change is written over what of it is there.
    }
  }

  async #rewrite(): Promise<void> {
    const bytes = this.#snapshot();
    this.#meanwhile = [];
    const path = `${this.#directory}/${newTableName}`;
    const file = await this.#files.open(path, 'write');
    try {
      await file.truncate(0);
      await file.write([bytes], 0);
      await file.sync();
      await this.#replaceTable(path);
    } catch (error) {
      this.#meanwhile = undefined;
      await file.close();
      throw error;
    }
    const old = this.#journal;
    const lines = Buffer.concat(this.#meanwhile);
    this.#meanwhile = undefined;
    this.#journal = file;
    this.#snapshotBytes = bytes.length;
    this.#position = bytes.length + lines.length;
    this.#changedPosition = this.#position;
    this.#syncedPosition = bytes.length;
    this.#rewriteNeeded = false;
    try {
      file.writeNow([lines], bytes.length);
    } catch {
      // Then the next sync writes all of it again.
      this.#rewriteNeeded = true;
    }
    await old?.close();
  }

  async #replaceTable(path: string): Promise<void> {
    try {
      await this.#files.rename(path, `${this.#directory}/${tableName}`);
      await this.#files.syncDirectory(this.#directory);
    } catch (error) {
      // Either of the two may be found after a power cut: neither is appended to.
      this.#rewriteNeeded = true;
      throw error;
    }
  }

  #snapshot(): Buffer {
    const lines: Buffer[] = [];
    for (const node of this.#nodes.values()) lines.push(encodeLine([{ put: node.record }]));
    for (const [directory, node] of this.#nodes) {
      const links = [...node.entries.values()]
        .sort((a, b) => a.cookie - b.cookie)
        .map((entry) => ({ link: { ...entry, directory } }));
      for (let at = 0; at < links.length; at += 64)
        lines.push(encodeLine(links.slice(at, at + 64)));
    }
    const heading: Heading = { format, lines: lines.length, nextId: this.nextId };
    return Buffer.concat([encodeLine(heading), ...lines]);
  }

  async #load(): Promise<void> {
    const path = `${this.#directory}/${tableName}`;
    const file = await this.#files.open(path, 'read');
    const bytes = Buffer.alloc(await file.size());
    await file.read(bytes, 0);
    await file.close();
    const { values, badAt, durableTo } = decodeLines(bytes);
    const [heading, ...lines] = values as [Heading | undefined, ...unknown[]];
    if (heading !== undefined && heading.format > format) {
      throw new RouseError('newer-format', `${path} was written by a newer Rouse`);
    }
    if (heading === undefined || lines.length < heading.lines || badAt < durableTo) {
      throw new RouseError('corrupt-data', `${path}: damaged at byte ${badAt}`, {
        advice:
          'The table of files in this clone has rotten on its disk; nothing of it was changed. Put ' +
          'back a good copy of this file, or begin the recovery anew.',
      });
    }
    this.nextId = heading.nextId;
    for (const line of lines) {
      // The checksum vouches for the shape: only `change` and `#mark` write it.
      if (!isMark(line)) this.#apply(line as readonly TableChange[]);
    }
  }

  #apply(changes: readonly TableChange[]): void {
    for (const change of changes) {
      if ('put' in change) this.#put(change.put);
      else if ('drop' in change) this.#nodes.delete(change.drop);
      else if ('link' in change) {
        const { directory, name, id, cookie } = change.link;
        this.#nodes.get(directory)?.link({ name, id, cookie });
      } else this.#nodes.get(change.unlink.directory)?.unlink(change.unlink.name);
    }
  }

  #put(record: NodeRecord): void {
    this.nextId = Math.max(this.nextId, record.id + 1);
    const node = this.#nodes.get(record.id);
    if (node === undefined) this.#nodes.set(record.id, new FileNode({ ...record }));
    else node.record = { ...record };
  }
}

/** Eight hex digits of CRC-32, a space, JSON, a line feed. */
function encodeLine(value: unknown): Buffer {
  const json = JSON.stringify(value);
  return Buffer.from(`${crc32(json).toString(16).padStart(8, '0')} ${json}\n`);
}

/**
 * The values of whole lines until the first that is not, and its position; and how far the journal
 * was durable once, as all lines say, those behind a bad one as well.
 */
function decodeLines(bytes: Buffer): { values: unknown[]; badAt: number; durableTo: number } {
  const values: unknown[] = [];
  let badAt: number | undefined;
  let durableTo = 0;
  for (let at = 0, end = 0; at < bytes.length; at = end) {
    const feed = bytes.indexOf(10, at);
    end = feed < 0 ? bytes.length : feed + 1;
    const value = feed < 0 ? undefined : decodeLine(bytes, at, feed);
    if (value === undefined) badAt ??= at;
    else if (isMark(value)) durableTo = Math.max(durableTo, value.durable);
    if (value !== undefined && badAt === undefined) values.push(value);
  }
  return { values, badAt: badAt ?? bytes.length, durableTo };
}

/** undefined: it is not as it was written. */
function decodeLine(bytes: Buffer, at: number, end: number): unknown {
  if (end < at + 9 || bytes[at + 8] !== 0x20) return undefined;
  const json = bytes.subarray(at + 9, end);
  const sum = bytes.toString('latin1', at, at + 8);
  if (sum !== crc32(json).toString(16).padStart(8, '0')) return undefined;
  return JSON.parse(json.toString());
}

function isMark(value: unknown): value is DurableMark {
  return typeof value === 'object' && value !== null && 'durable' in value;
}

/** Reading, writing and resizing the plain files of an export, with the promises of NFS. */
import { isPromise, type MaybePromise } from '../lib/maybe-promise.ts';
import {
  NfsError,
  NfsStatus,
  Stable,
  type ReadResult,
  type WriteResult,
} from '../nfs/file-system.ts';
import { toNfsError } from './export-names.ts';
import type { FileNode } from './file-nodes.ts';
import type { FileTable } from './file-table.ts';
import type { PlainFiles } from './plain-files.ts';
import type { TimeSource } from './time-source.ts';
import type { WriteLayer } from './write-layer.ts';

const stableResult: WriteResult = { committed: Stable.fileSync };
const unstableResult: WriteResult = { committed: Stable.unstable };

/** ext4's own bound with blocks of 4 KiB. */
const plainFileBytesMax = 16 * 1024 ** 4;

export interface PlainContentParts {
  readonly table: FileTable;
  readonly plain: PlainFiles;
  readonly layer: WriteLayer;
  readonly times: TimeSource;
}

export class PlainContent {
  readonly #table: FileTable;
  readonly #plain: PlainFiles;
  readonly #layer: WriteLayer;
  readonly #times: TimeSource;

  constructor(parts: PlainContentParts) {
    this.#table = parts.table;
    this.#plain = parts.plain;
    this.#layer = parts.layer;
    this.#times = parts.times;
  }

  /** The size, which is asked for once. */
  measure(node: FileNode): MaybePromise<number> {
    return node.sizeBytes ?? this.#ask(node);
  }

  read(node: FileNode, offset: number, target: Buffer): MaybePromise<ReadResult> {
    const size = node.sizeBytes;
    if (size !== undefined) {
      const bytes = Math.max(0, Math.min(target.length, size - offset));
      const result = { bytes, eof: offset + bytes >= size };
      if (bytes === 0) return result;
      const part = target.subarray(0, bytes);
      if (this.#plain.readNow(node.record.id, part, offset) === bytes) return result;
    }
    return this.#readLater(node, offset, target);
  }

  async write(node: FileNode, offset: number, data: Buffer, stable: Stable): Promise<WriteResult> {
    try {
      await this.#write(node, offset, data);
      if (stable === Stable.unstable) {
        await this.#layer.markDirty();
        return unstableResult;
      }
      await this.#makeDurable(node, stable === Stable.fileSync);
      return stableResult;
    } catch (error) {
      throw toNfsError(error);
    }
  }

  async commit(node: FileNode): Promise<WriteResult> {
    await this.#makeDurable(node, true);
    return stableResult;
  }

  /** Durable, but for the times in the table. */
  async resize(node: FileNode, sizeBytes: number): Promise<void> {
    if (sizeBytes > plainFileBytesMax) throw new NfsError(NfsStatus.fbig, 'file too large');
    const { id } = node.record;
    const before = await this.measure(node);
    if (before === 0 && sizeBytes === 0) return;
    await this.#plain.truncate(id, sizeBytes);
    node.sizeBytes = sizeBytes;
    await this.#plain.sync(id);
    node.allocatedBytes = (await this.#plain.size(id)).allocatedBytes;
    this.#touch(node);
    if (this.#table.node(id) === node) this.#table.change([{ put: node.record }]);
  }

  async #ask(node: FileNode): Promise<number> {
    try {
      const { sizeBytes, allocatedBytes } = await this.#plain.size(node.record.id);
      // A write may have been faster.
      if (node.sizeBytes === undefined) {
        node.sizeBytes = sizeBytes;
        node.allocatedBytes = allocatedBytes;
      }
      return node.sizeBytes;
    } catch (error) {
      throw toNfsError(error);
    }
  }

  async #readLater(node: FileNode, offset: number, target: Buffer): Promise<ReadResult> {
    const size = await this.measure(node);
    const bytes = Math.max(0, Math.min(target.length, size - offset));
    if (bytes === 0) return { bytes, eof: offset >= size };
    try {
      const read = await this.#plain.read(node.record.id, target.subarray(0, bytes), offset);
      return { bytes: read, eof: offset + read >= size };
    } catch (error) {
      throw toNfsError(error);
    }
  }

  async #write(node: FileNode, offset: number, data: Buffer): Promise<void> {
    const end = offset + data.length;
    if (end > plainFileBytesMax) throw new NfsError(NfsStatus.fbig, 'file too large');
    const measured = this.measure(node);
    const before = isPromise(measured) ? await measured : measured;
    this.#layer.checkSpace(data.length);
    await this.#plain.write(node.record.id, data, offset);
    node.sizeBytes = Math.max(node.sizeBytes ?? before, end);
    node.allocatedBytes = Math.min(node.sizeBytes, node.allocatedBytes + data.length);
    this.#touch(node);
  }

  async #makeDurable(node: FileNode, times: boolean): Promise<void> {
    const { id } = node.record;
    const still = this.#table.node(id) === node;
    if (times && still) this.#table.change([{ put: node.record }]);
    await Promise.all([this.#plain.sync(id), times ? this.#table.durable() : undefined]);
    this.#layer.considerClean();
  }

  #touch(node: FileNode): void {
    const now = this.#times.next();
    node.record.modified = now;
    node.record.changed = now;
  }
}

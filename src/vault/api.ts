import type { Extent, ReadableDisk } from '../lib/disk.ts';

/**
 * What the other rooms know of the vault: nouns and ports. `vault.ts` implements it.
 *
 * A *saveset* is one immutable backup: files (configuration, nvram; small) and disks. A disk *is* a
 * `DiskRoot`: the hash of its tree, its size and depth. Whoever holds a root can read the disk
 * for ever; a clone is a root and a write layer (datastore/).
 */
export interface DiskRoot {
  /** Hex of the 32-byte id of the tree's top node; the empty string: all zeros. */
  readonly hash: string;
  /** Levels of nodes above the data blocks; 0 with an empty hash. */
  readonly depth: number;
  readonly sizeBytes: number;
}

export interface SavesetDisk {
  /** The disk's name in the machine: a target such as `vda`, or a file's base name. */
  readonly name: string;
  readonly root: DiskRoot;
  /** Where it came from, for people: path or URL and format. */
  readonly source: string;
  /** Bytes of its blocks that are not zero. */
  readonly referencedBytes?: number;
}

/** The record of a saveset as stored in the vault (docs/format.md). */
export interface Saveset {
  readonly id: string;
  readonly mtree: string;
  readonly machine: { readonly id: string; readonly name: string };
  /** Milliseconds since the epoch: when the content was consistent. */
  readonly takenAtMs: number;
  readonly kind: 'full' | 'incremental' | 'sealed';
  /** The saveset this one was built on, if any (it does not depend on it). */
  readonly basedOn?: string;
  /** `crash`: as after a power cut; `filesystem`: frozen by the guest agent; `offline`. */
  readonly consistency: 'crash' | 'filesystem' | 'offline';
  readonly disks: readonly SavesetDisk[];
  readonly files: readonly SavesetFile[];
  /** Bytes read, new bytes before and after compression: what this backup cost. */
  readonly cost: IngestCost;
  /** Hypervisor facts needed to go on incrementally (checkpoint, bitmaps), and labels. */
  readonly labels: Readonly<Record<string, string>>;
}

export interface SavesetFile {
  /** `domain.xml`, `machine.vmx`, `nvram`. */
  readonly name: string;
  readonly root: DiskRoot;
  /** Bytes of its blocks that are not zero. */
  readonly referencedBytes?: number;
}

export interface IngestCost {
  readonly readBytes: number;
  readonly zeroBytes: number;
  /** Bytes whose blocks the vault had already. */
  readonly knownBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
}

export interface Mtree {
  readonly name: string;
  readonly codec: 'lz4' | 'zstd';
  readonly createdMs: number;
}

/** A disk in the vault, read on demand; nothing of it is loaded beforehand. */
export interface VaultDisk extends ReadableDisk {
  readonly root: DiskRoot;
  /**
   * Fills `target` from `offset` without waiting for any disk, or answers false. A hole is filled
   * with zeros. Throws `corrupt-data` when a block is bad.
   */
  readNow(target: Uint8Array, offset: number): boolean;
}

/** Takes one backup in. Not shared between tasks; disks may be written in parallel. */
export interface SavesetWriter {
  /** `base`: start from this disk (incremental) instead of all zeros. */
  disk(name: string, sizeBytes: number, source: string, base?: DiskRoot): DiskWriter;
  file(name: string, bytes: Uint8Array): Promise<void>;
  readonly cost: IngestCost;
  /** Durable when it resolves: packs, trees, then the record. */
  seal(record: SavesetHeader): Promise<Saveset>;
  /** Forgets the saveset; blocks already stored stay and are reused next time. */
  abandon(): Promise<void>;
}

export type SavesetHeader = Omit<Saveset, 'id' | 'mtree' | 'disks' | 'files' | 'cost'>;

export interface DiskWriter {
  /**
   * `offset` is a multiple of the block size, `bytes` whole blocks (the disk's last one may be
   * short). The memory belongs to the caller again once this resolves; it resolves as soon as
   * the pipeline has room (back-pressure), not when stored. Any order; ascending is fastest.
   */
  write(offset: number, bytes: Uint8Array): Promise<void>;
  zero(offset: number, length: number): Promise<void>;
  /** Waits for all blocks; answers the new root. */
  finish(): Promise<DiskRoot>;
}

export interface VaultStats {
  readonly formatVersion: number;
  readonly blockBytes: number;
  readonly savesets: number;
  readonly machines: number;
  readonly packs: number;
  /** Sum of all disks of all savesets. */
  readonly logicalBytes: number;
  /** The same without zero blocks. */
  readonly referencedBytes: number;
  /** Unique blocks before compression. */
  readonly uniqueBytes: number;
  /** Bytes of packs on disk. */
  readonly storedBytes: number;
  readonly dedupRatio: number;
  readonly compressionRatio: number;
  readonly indexEntries: number;
  readonly indexMemoryBytes: number;
  readonly cache: CacheStats;
}

export interface CacheStats {
  readonly boundBytes: number;
  readonly usedBytes: number;
  readonly hits: number;
  readonly misses: number;
}

export interface VerifyProgress {
  readonly doneBytes: number;
  readonly totalBytes: number;
}

export interface VerifyReport {
  readonly savesets: readonly {
    readonly id: string;
    readonly machine: string;
    readonly ok: boolean;
    readonly blocks: number;
    readonly bytes: number;
    /** Human sentences: which disk, which range, what is wrong. */
    readonly problems: readonly string[];
  }[];
  readonly ok: boolean;
}

export interface RescanReport {
  readonly packs: number;
  readonly blocks: number;
  readonly savesets: number;
  readonly problems: readonly string[];
}

export interface Vault {
  readonly id: string;
  readonly blockBytes: number;
  mtrees(): Promise<readonly Mtree[]>;
  createMtree(name: string, codec: Mtree['codec']): Promise<Mtree>;
  savesets(): Promise<readonly Saveset[]>;
  /** Throws `not-found`. */
  saveset(id: string): Promise<Saveset>;
  /** Constant time, whatever the size: reads at most the top node. */
  openDisk(root: DiskRoot): Promise<VaultDisk>;
  /** Reads a small file of a saveset whole (at most 64 MiB). */
  readFile(file: SavesetFile): Promise<Buffer>;
  begin(mtree: string): Promise<SavesetWriter>;
  /**
   * The ranges in which two disks differ, by walking both trees where hashes differ.
   */
  difference(a: DiskRoot, b: DiskRoot): AsyncIterable<Extent>;
  stats(): Promise<VaultStats>;
  /** The block cache alone: costs nothing to ask. */
  cacheStats(): CacheStats;
  /** Re-hashes every block that the saveset (all: undefined) needs. Never throws for bad data. */
  verify(
    id?: string,
    onProgress?: (p: VerifyProgress) => void,
    signal?: AbortSignal,
  ): Promise<VerifyReport>;
  /** Rebuilds the index from the packs alone. */
  rescan(onProgress?: (p: VerifyProgress) => void, signal?: AbortSignal): Promise<RescanReport>;
  close(): Promise<void>;
}

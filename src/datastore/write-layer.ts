/**
 * The write layer of a clone: everything its disks have been told since, in one log. Nouns: a
 * *page* is 4 KiB of a disk; a *batch* is one append of many pages; a *tick* is all writes that
 * arrive before the event loop turns; a *sequence* numbers batches.
 *
 * Invariants. (1) A write is answered after its bytes are with the kernel; a stable one after a
 * sync of the log that began later. (2) The map points to a page only after its bytes are
 * appended. (3) A segment is removed only when nothing points into it and what superseded its
 * pages is durable. (4) A page's bytes are checked against its CRC whenever they are read.
 * (5) After a failed sync nothing counts as durable until every page that it should have
 * written is copied to a new segment and synced there.
 *
 * One thread; reads, writes and syncs overlap freely, cleaning and checkpoints run beside them.
 */
import { RouseError } from '../errors.ts';
import type { MaybePromise } from '../lib/maybe-promise.ts';
import { datastoreLimits } from '../limits.ts';
import { Stable, type NfsTime, type WriteResult } from '../nfs/file-system.ts';
import { Appender } from './appender.ts';
import { mergeAndAppend } from './merge-write.ts';
import { Prewriting } from './prewriting.ts';
import { QuietMark } from './quiet-mark.ts';
import { Housework } from './housework.ts';
import { checkpointName, newCheckpointName, writeCheckpoint } from './layer-checkpoint.ts';
import { pageBytes, segmentHeaderUnits } from './layer-format.ts';
import { LayerReader, type DiskView } from './layer-reader.ts';
import { recoverLayer, type Recovered } from './layer-recovery.ts';
import { LayerState } from './layer-state.ts';
import type { PageMap } from './page-map.ts';
import { cleanSegment } from './segment-cleaner.ts';
import { Segments, type Segment } from './segments.ts';
import { SharedWork } from './shared-work.ts';
import { SpaceWatch } from './space-watch.ts';
import { newTick, type Tick } from './tick.ts';
import type { LayerDisk, LayerSurroundings, LayerTuning } from './layer-surroundings.ts';

const stateName = 'state';

const unstableResult: WriteResult = { committed: Stable.unstable };
const stableResult: WriteResult = { committed: Stable.fileSync };

export class WriteLayer {
  readonly #directory: string;
  readonly #around: LayerSurroundings;
  readonly #tuning: LayerTuning;
  readonly #state: LayerState;
  readonly #segments: Segments;
  readonly #maps: readonly PageMap[];
  readonly #views: readonly DiskView[];
  readonly #appender: Appender;
  readonly #reader: LayerReader;
  readonly #space: SpaceWatch;
  readonly #quiet: QuietMark;
  readonly #prewriting: Prewriting;
  readonly #syncs = new SharedWork(() => this.#syncOnce());
  readonly #checkpoints = new SharedWork(() => this.#writeCheckpoint());
  /** Segments whose sync failed: what lives in them from that unit on must be copied first. */
  readonly #suspects = new Map<Segment, number>();
  #syncedSequence: number;
  /** The last batch with a write that was answered before it was synced. */
  #unstableSequence = 0;
  #tick: Tick | undefined;
  #flushScheduled = false;
  /** Resolves, and never rejects, when what waits for a segment was appended or given up. */
  #room: Promise<void> | undefined;
  readonly #housework: Housework;
  #checkpointBytes: number;
  #tailBytes: number;
  #sinceHousework = 0;
  #snapshots = 0;
  #closed = false;

  /** Makes an empty layer in a new directory; durable once the parent directory is synced. */
  static async create(around: LayerSurroundings, directory: string): Promise<void> {
    await around.files.makeDirectory(directory);
    await LayerState.create(
      around.files,
      `${directory}/${stateName}`,
      around.random,
      around.bootId,
    );
    await around.files.syncDirectory(directory);
  }

  static async open(
    around: LayerSurroundings,
    directory: string,
    disks: readonly LayerDisk[],
  ): Promise<WriteLayer> {
    const { files, random, bootId } = around;
    const tuning = { ...datastoreLimits, ...around.tuning };
    const segments = new Segments(files, directory, random, tuning.segmentBytes);
    const recovered = await recoverLayer(files, directory, disks.length, segments);
    const path = `${directory}/${stateName}`;
    const { state, sameBoot } = await LayerState.open(files, path, random, bootId);
    const layer = new WriteLayer(around, directory, disks, state, segments, recovered);
    for (const message of recovered.damage) around.onDamage(-1, 0, message);
    await layer.#space.refresh();
    // The last process may have died after a sync that failed: its word is not taken for it.
    if (sameBoot) for (const [segment, unit] of recovered.doubtful) layer.#doubt(segment, unit);
    layer.#quiet.consider();
    return layer;
  }

  private constructor(
    around: LayerSurroundings,
    directory: string,
    disks: readonly LayerDisk[],
    state: LayerState,
    segments: Segments,
    recovered: Recovered,
  ) {
    this.#around = around;
    this.#directory = directory;
    this.#state = state;
    this.#segments = segments;
    this.#maps = recovered.maps;
    this.#views = recovered.maps.flatMap((map, disk) => {
      const found = disks[disk];
      return found === undefined ? [] : [{ disk, map, ...found }];
    });
    this.#syncedSequence = recovered.syncedSequence;
    this.#checkpointBytes = recovered.checkpointBytes;
    this.#tailBytes = recovered.tailBytes;
    this.#reader = new LayerReader(segments, around.onDamage);
    this.#tuning = { ...datastoreLimits, ...around.tuning };
    const { reserveBytes, quietMs } = this.#tuning;
    this.#space = new SpaceWatch(around.files, around.clock, directory, reserveBytes);
    this.#quiet = new QuietMark(state, around.clock, quietMs, () => this.#allSynced());
    this.#prewriting = new Prewriting(this.#tuning);
    this.#appender = new Appender(segments, recovered, around.times);
    this.#housework = new Housework(segments, this.#tuning, {
      mayRemove: () => this.#suspects.size === 0 && this.#snapshots === 0,
      mayKeepFiles: () => !this.#space.tooLittle,
      syncedSequence: () => this.#syncedSequence,
      tailBytes: () => this.#tailBytes,
      checkpointBytes: () => this.#checkpointBytes,
      checkpoint: () => this.checkpoint(),
      sync: () => this.#durable(),
      clean: (segment) => this.#clean(segment, segmentHeaderUnits),
    });
    segments.mayPrepareEarly = () => !this.#housework.overloaded;
    segments.mayKeepFiles = () => !this.#space.tooLittle;
    if (state.dirty) this.#unstableSequence = recovered.sequence;
  }

  get writeVerifier(): bigint {
    return this.#state.verifier;
  }

  /** Unsynced writes may have been answered: a power cut would change the verifier. */
  get dirty(): boolean {
    return this.#state.dirty;
  }

  /** When the disk was last written; undefined: never. */
  modified(disk: number): NfsTime | undefined {
    return this.#appender.modified[disk];
  }

  /** Bytes of pages written, and bytes that the log takes on disk. */
  stats(): { readonly writtenBytes: number; readonly allocatedBytes: number } {
    const pages = this.#maps.reduce((sum, map) => sum + map.pages, 0);
    let allocatedBytes = this.#segments.spareBytes;
    for (const segment of this.#segments.all()) allocatedBytes += segment.writtenBytes;
    return { writtenBytes: pages * pageBytes, allocatedBytes };
  }

  /** Fills `target`, at once when nothing has to be waited for. */
  read(disk: number, offset: number, target: Buffer): MaybePromise<void> {
    return this.#reader.read(this.#view(disk), offset, target);
  }

  /**
   * Takes `data` in, whose memory must stay as it is until this resolves. `stable`: it resolves
   * once the bytes are durable. Within the disk's size.
   */
  write(disk: number, offset: number, data: Buffer, stable: boolean): Promise<WriteResult> {
    if (this.#closed) return Promise.reject(closedError(this.#directory));
    if (data.length === 0) return Promise.resolve(stableResult);
    if (offset % pageBytes !== 0 || data.length % pageBytes !== 0) {
      return this.#writeUnaligned(disk, offset, data, stable);
    }
    return this.#enqueue(disk, offset / pageBytes, data, stable);
  }

  /** Makes everything answered so far durable. */
  async commit(): Promise<WriteResult> {
    if (this.#closed) throw closedError(this.#directory);
    this.#flush();
    await this.#durable();
    return stableResult;
  }

  /** For bytes outside the layer that share its verifier: resolves once they may be unsynced. */
  async markDirty(): Promise<void> {
    if (!this.#state.dirty) await this.#state.markDirty();
    this.#quiet.consider();
  }

  /** Such bytes were synced. */
  considerClean(): void {
    this.#quiet.consider();
  }

  /** A sync of such bytes failed: they may be lost. */
  async lost(): Promise<void> {
    this.#state.changeVerifier();
    await this.#state.save().catch(() => undefined);
  }

  /** Throws `disk-full` when only the reserve is left. */
  checkSpace(bytes: number): void {
    this.#space.spend(bytes);
    if (this.#space.tooLittle) throw this.#space.error();
  }

  /** The disk as it is now, for as long as `release` is not called; costs nothing at once. */
  snapshot(disk: number): DiskView & { readonly release: () => void } {
    this.#snapshots++;
    let held = true;
    const release = () => {
      if (held) this.#snapshots--;
      held = false;
    };
    const map = this.#maps[disk]?.snapshot() ?? this.#view(disk).map;
    return { ...this.#view(disk), map, release };
  }

  get reader(): LayerReader {
    return this.#reader;
  }

  /** Writes the map down, so that the next opening is quick. Needs no quiet. */
  checkpoint(): Promise<void> {
    return this.#checkpoints.request();
  }

  async #writeCheckpoint(): Promise<void> {
    const { files } = this.#around;
    const tailBytes = this.#tailBytes;
    const sequence = this.#appender.sequence;
    const segments = this.#segments
      .all()
      .filter((segment) => segment.lastSequence > 0)
      .map(({ header, endUnits, lastSequence }) => {
        return { id: header.id, slot: header.slot, endUnits, lastSequence };
      });
    const maps = this.#maps.map((map) => map.snapshot());
    const none = { seconds: 0, nanoseconds: 0 };
    const modified = this.#appender.modified.map((time) => time ?? none);
    const fresh = `${this.#directory}/${newCheckpointName}`;
    const size = await writeCheckpoint(files, fresh, { sequence, segments, modified }, maps);
    await this.#durable();
    await files.rename(fresh, `${this.#directory}/${checkpointName}`);
    await files.syncDirectory(this.#directory);
    this.#checkpointBytes = size;
    this.#tailBytes -= tailBytes;
  }

  /** Syncs, writes the map down, and lets go of all files. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#flush();
    this.#closed = true;
    await this.#quiet.stop();
    await this.#housework.stop();
    try {
      await this.#durable();
      if (this.#tailBytes > 0) await this.checkpoint();
      await this.#state.markClean(() => this.#allSynced());
    } finally {
      await this.#segments.close();
      await this.#state.close();
    }
  }

  #view(disk: number): DiskView {
    const view = this.#views[disk];
    if (view === undefined) throw new RangeError(`the layer has no disk ${disk}`);
    return view;
  }

  #enqueue(disk: number, page: number, data: Buffer, stable: boolean): Promise<WriteResult> {
    this.#space.spend(data.length);
    if (this.#space.tooLittle) return this.#refuse();
    const tick = (this.#tick ??= newTick());
    if (stable) tick.hasStable = true;
    else tick.hasUnstable = true;
    this.#appender.add(disk, page, data);
    if (!this.#flushScheduled) {
      this.#flushScheduled = true;
      queueMicrotask(() => {
        this.#flushScheduled = false;
        this.#flush();
      });
    }
    return stable ? tick.stable.promise : tick.unstable.promise;
  }

  /** Files that are kept for later may be the room that is missing. */
  #refuse(): Promise<never> {
    this.#housework.consider();
    return Promise.reject(this.#space.error());
  }

  /** Appends what waits, if there is room now; otherwise once there is. */
  #flush(): boolean {
    const tick = this.#tick;
    if (tick === undefined) return true;
    if (this.#room !== undefined) return false;
    try {
      while (this.#appender.pending) {
        if (!this.#appender.append(this.#maps, this.#syncedSequence)) {
          this.#room = this.#waitForRoom();
          return false;
        }
      }
    } catch (error) {
      this.#fail(tick, error);
      return true;
    }
    this.#tick = undefined;
    this.#settle(tick);
    return true;
  }

  async #waitForRoom(): Promise<void> {
    try {
      await this.#housework.relief(this.#around.clock);
      await this.#segments.prepare();
      this.#room = undefined;
      this.#flush();
    } catch (error) {
      this.#room = undefined;
      if (this.#tick !== undefined) this.#fail(this.#tick, error);
    }
  }

  #fail(tick: Tick, error: unknown): void {
    this.#tick = undefined;
    this.#appender.drop();
    this.#space.refreshSoon();
    this.#quiet.consider();
    for (const half of [tick.unstable, tick.stable]) {
      half.promise.catch(() => undefined);
      half.reject(error);
    }
  }

  #settle(tick: Tick): void {
    this.#countAppended();
    if (tick.hasUnstable) {
      this.#unstableSequence = this.#appender.sequence;
      if (this.#state.dirty) tick.unstable.resolve(unstableResult);
      else this.#answerDirty(tick);
    }
    if (tick.hasStable) {
      this.#syncs.request().then(() => tick.stable.resolve(stableResult), tick.stable.reject);
    }
    this.#considerHousework();
  }

  /** Pages written in part keep the rest of what they held. */
  #writeUnaligned(
    disk: number,
    offset: number,
    data: Buffer,
    stable: boolean,
  ): Promise<WriteResult> {
    const flush = async () => {
      while (!this.#flush()) await this.#room;
    };
    const settled = () => this.#tick === undefined;
    const view = this.#view(disk);
    return mergeAndAppend(view, this.#reader, offset, data, flush, settled, (page, whole) => {
      if (this.#closed) throw closedError(this.#directory);
      const done = this.#enqueue(disk, page, whole, stable);
      // Appended at once, so that the next merge with one of these pages finds them.
      this.#flush();
      return done;
    });
  }

  #allSynced(): boolean {
    return (
      this.#syncedSequence >= this.#unstableSequence &&
      this.#suspects.size === 0 &&
      this.#tick === undefined &&
      !(this.#around.unsyncedElsewhere?.() ?? false)
    );
  }

  /** Everything appended so far. */
  async #durable(): Promise<void> {
    const clean = this.#syncedSequence >= this.#appender.sequence && this.#suspects.size === 0;
    if (clean && !this.#state.unsaved) return;
    await this.#syncs.request();
  }

  async #syncOnce(): Promise<void> {
    if (this.#suspects.size > 0) await this.#rescue();
    const sequence = this.#appender.sequence;
    const segments = [...this.#segments.unsynced];
    if (!this.#space.tooLittle) this.#prewriting.beforeSync(this.#segments.active);
    const names = this.#segments.namesUnsynced;
    this.#segments.namesUnsynced = false;
    this.#segments.unsynced.clear();
    try {
      await Promise.all([
        names ? this.#around.files.syncDirectory(this.#directory) : undefined,
        ...segments.map((segment) => segment.file.sync()),
      ]);
    } catch (error) {
      if (names) this.#segments.namesUnsynced = true;
      await this.#onSyncFailure(segments);
      throw error;
    }
    if (this.#state.unsaved) await this.#state.save();
    this.#syncedSequence = Math.max(this.#syncedSequence, sequence);
    this.#quiet.consider();
    this.#considerHousework();
  }

  /** The kernel may have dropped what it could not write, and will not say so again. */
  async #onSyncFailure(segments: readonly Segment[]): Promise<void> {
    for (const segment of segments) this.#doubt(segment, segmentHeaderUnits);
    // What came during the sync is in doubt as well.
    for (const segment of this.#segments.unsynced) this.#doubt(segment, segmentHeaderUnits);
    this.#segments.unsynced.clear();
    this.#segments.afterFailure = true;
    this.#state.changeVerifier();
    await this.#segments.retireActive();
    await this.#state.save().catch(() => undefined);
  }

  #doubt(segment: Segment, fromUnit: number): void {
    segment.trusted = false;
    this.#suspects.set(segment, Math.min(fromUnit, this.#suspects.get(segment) ?? fromUnit));
  }

  /** Copies everything that lives in suspect segments to new ones. */
  async #rescue(): Promise<void> {
    if (this.#state.unsaved) await this.#state.save();
    for (const [segment, unit] of this.#suspects) {
      const lost = await this.#clean(segment, unit);
      if (lost > 0) {
        segment.damaged = true;
        this.#state.changeVerifier();
        this.#around.onDamage(-1, 0, `${segment.path}: ${lost} pages were lost by a failed sync`);
      }
      this.#suspects.delete(segment);
    }
  }

  /** Answers how many pages are still there, because they cannot be read as written. */
  async #clean(segment: Segment, fromUnit: number): Promise<number> {
    return cleanSegment(segment, fromUnit, this.#maps, async (moves) => {
      while (!this.#appender.appendMoves(moves, this.#maps, this.#syncedSequence)) {
        await this.#segments.prepare();
      }
      this.#countAppended();
    });
  }

  #answerDirty(tick: Tick): void {
    this.#state.markDirty().then(() => {
      tick.unstable.resolve(unstableResult);
      // A sync may have made these bytes durable meanwhile.
      this.#quiet.consider();
    }, tick.unstable.reject);
  }

  #countAppended(): void {
    const bytes = this.#appender.takeAppendedBytes();
    this.#tailBytes += bytes;
    this.#sinceHousework += bytes;
    this.#prewriting.appended(bytes);
  }

  #considerHousework(): void {
    this.#space.consider();
    if (this.#sinceHousework * 16 < this.#tuning.segmentBytes) return;
    if (this.#closed || this.#suspects.size > 0) return;
    this.#sinceHousework = 0;
    this.#housework.consider();
  }
}

function closedError(path: string): RouseError {
  return new RouseError('wrong-state', `${path}: the write layer is closed`);
}

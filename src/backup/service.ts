import { RouseError } from '../errors.ts';
import type { BackupRow, Backups as BackupRows } from '../catalog/backups.ts';
import type { OtherBackup } from '../hypervisors/port.ts';
import type { Clock } from '../lib/clock.ts';
import { changesOf } from '../lib/changes.ts';
import type { Random } from '../lib/random.ts';
import { pick } from '../lib/text.ts';
import type { JobView } from '../proxy/port.ts';
import type { Saveset } from '../vault/api.ts';
import type { Engine, RunView } from '../workflows/api.ts';
import { takingLimits } from './limits.ts';
import type { BackupInput } from './taking.ts';
import type { Backup, BackupFilter, BackupRequest, BackupService } from './schema.ts';

/** What the service needs of the rest of the server. */
export interface BackupDesk {
  readonly clock: Clock;
  readonly random: Random;
  readonly engine: Engine;
  readonly rows: BackupRows;
  transaction<T>(work: () => Promise<T>): Promise<T>;
  readonly scratchDirectory: string;
  /** The machine a request means, with the hypervisor that has it. */
  findMachine(
    reference: string,
    hypervisor: string | undefined,
  ): Promise<{
    readonly id: string;
    readonly name: string;
    readonly hypervisorId: string;
    /** What its hypervisor calls it. */
    readonly managedId: string;
    /** The name of another machine there that has its UUID. */
    readonly twin?: string;
  }>;
  hypervisorName(id: string): Promise<string>;
  /** The name of the proxy that is meant; undefined: the one beside this server. */
  proxy(reference: string | undefined): Promise<string>;
  /** Savesets of a machine in that proxy's vault, newest first. */
  savesetsOf(machineId: string, proxy: string): Promise<readonly Saveset[]>;
  mtree(reference: string | undefined, proxy: string): Promise<string>;
  tell(
    backup: { readonly id: string; readonly name: string },
    level: 'info' | 'warning' | 'error',
    kind: string,
    message: string,
  ): Promise<void>;
}

export class Backups implements BackupService {
  readonly #desk: BackupDesk;
  /** The last news of each running job: what the journal need not keep. */
  readonly #jobs = new Map<string, { readonly view: JobView; readonly atMs: number }>();
  /** What backups wait for before they begin. */
  readonly #waits = new Map<string, string>();
  #wakes: (() => void)[] = [];

  constructor(desk: BackupDesk) {
    this.#desk = desk;
  }

  async start(request: BackupRequest): Promise<Backup> {
    const backupId = this.#desk.random.id();
    const input =
      request.kind === 'machine'
        ? await this.#ofMachine(backupId, request)
        : await this.#ofFiles(backupId, request);
    await this.#desk.transaction(async () => {
      await this.#refuseSecond(input);
      await this.#desk.rows.insert({
        id: backupId,
        machineId: input.machine.id,
        machineName: input.machine.name,
        startedMs: this.#desk.clock.now(),
      });
      await this.#desk.engine.submit('backup.run', `backup/${input.machine.id}`, input, backupId);
    });
    return this.get(backupId);
  }

  async #ofMachine(
    backupId: string,
    request: Extract<BackupRequest, { kind: 'machine' }>,
  ): Promise<BackupInput> {
    const found = await this.#desk.findMachine(request.machine, request.hypervisor);
    if (found.twin !== undefined) throw notTellable(found.name, found.twin, found.id);
    const proxy = await this.#desk.proxy(request.proxy);
    const savesets = request.full ? [] : await this.#desk.savesetsOf(found.id, proxy);
    const base = savesets.find(({ kind, labels }) => kind !== 'sealed' && hasLabels(labels));
    return {
      backupId,
      machine: { id: found.id, name: found.name },
      mtree: await this.#desk.mtree(request.mtree, proxy),
      proxy,
      from: {
        kind: 'machine',
        hypervisorId: found.hypervisorId,
        managedId: found.managedId,
        scratchDirectory: this.#desk.scratchDirectory,
        base: base === undefined ? null : { savesetId: base.id, labels: base.labels },
        ...(base === undefined && savesets.length > 0 ? { noBase: noBaseOf(savesets) } : {}),
      },
    };
  }

  async #ofFiles(
    backupId: string,
    request: Extract<BackupRequest, { kind: 'files' }>,
  ): Promise<BackupInput> {
    const { files } = request;
    const proxy = await this.#desk.proxy(request.proxy);
    return {
      backupId,
      machine: { id: `files-${files.name}`, name: files.name },
      mtree: await this.#desk.mtree(request.mtree, proxy),
      proxy,
      from: {
        kind: 'files',
        disks: files.disks.map((disk, index) => ({
          name: disk.name ?? defaultDiskName(index),
          path: disk.path,
          ...(disk.format === undefined ? {} : { format: disk.format }),
        })),
        configuration: files.configuration ?? null,
        nvram: files.nvram ?? null,
      },
    };
  }

  async #refuseSecond(input: BackupInput): Promise<void> {
    const running = await this.#desk.rows.list({ state: 'running' });
    const same = running.find(({ machineId }) => machineId === input.machine.id);
    if (same === undefined) return;
    throw new RouseError('busy', `a backup of ${input.machine.name} runs already: ${same.id}`, {
      advice: `Watch it with: rouse backups; or end it with: rouse cancel ${same.id}`,
    });
  }

  async list(filter: BackupFilter): Promise<readonly Backup[]> {
    const rows = await this.#desk.rows.list(
      filter.state === undefined ? {} : { state: filter.state },
    );
    const { machine } = filter;
    const wanted = rows.filter(
      (row) => machine === undefined || row.machineId === machine || row.machineName === machine,
    );
    return Promise.all(wanted.map((row) => this.#view(row)));
  }

  async get(reference: string): Promise<Backup> {
    return this.#view(await this.#row(reference));
  }

  async #row(reference: string): Promise<BackupRow> {
    const rows = await this.#desk.rows.list({});
    const ofMachine = rows.find(({ machineName }) => machineName === reference);
    if (ofMachine !== undefined) return ofMachine;
    return pick(
      'backup',
      reference,
      rows.map((row) => ({ ...row, name: row.machineName })),
      'rouse backups',
    );
  }

  async #view(row: BackupRow): Promise<Backup> {
    const run = await this.#desk.engine.run(row.id);
    const input = run?.input as BackupInput | undefined;
    const job = this.#jobs.get(row.id)?.view;
    const progress = run?.steps.find(({ name }) => name === 'Read')?.progress;
    const readBytes = row.cost?.readBytes;
    const doneBytes = readBytes ?? job?.doneBytes ?? progress?.done ?? 0;
    const totalBytes = readBytes ?? job?.totalBytes ?? progress?.total ?? 0;
    const seconds = job === undefined ? 0 : (this.#desk.clock.now() - job.startedMs) / 1000;
    const rate = seconds > 0 && job?.state === 'running' ? doneBytes / seconds : 0;
    const from = input?.from;
    return {
      id: row.id,
      machine: { id: row.machineId, name: row.machineName },
      hypervisor:
        from?.kind === 'machine' ? await this.#desk.hypervisorName(from.hypervisorId) : null,
      mtree: input?.mtree ?? '',
      state: row.state,
      kind: row.kind,
      fullBecause: row.fullBecause,
      consistency: row.consistency,
      waitsFor: this.#waits.get(row.id) ?? null,
      doneBytes,
      totalBytes,
      newBytes: row.cost?.newBytes ?? job?.newBytes ?? 0,
      knownBytes: row.cost?.knownBytes ?? job?.knownBytes ?? 0,
      bytesPerSecond: Math.round(rate),
      etaMs: rate > 0 ? Math.round(((totalBytes - doneBytes) / rate) * 1000) : null,
      savesetId: row.savesetId,
      startedMs: row.startedMs,
      endedMs: row.endedMs,
      warnings: row.warnings,
      error: row.error,
    };
  }

  async cancel(reference: string): Promise<Backup> {
    const row = await this.#row(reference);
    if (row.state !== 'running') {
      throw new RouseError('wrong-state', `backup ${row.id} is ${row.state} already`, {
        advice: 'There is nothing left to cancel.',
      });
    }
    await this.#desk.engine.cancel(row.id);
    await this.#waitFor(row.id);
    return this.get(row.id);
  }

  /** A hypervisor that is away must not keep people waiting: what was begun goes on. */
  async #waitFor(runId: string): Promise<void> {
    const patience = new AbortController();
    const late = this.#desk.clock.sleep(takingLimits.cancelWaitMs, patience.signal);
    const ended = this.#desk.engine.finished(runId, patience.signal);
    try {
      await Promise.race([ended, late]);
    } finally {
      patience.abort();
      await Promise.allSettled([ended, late]);
    }
  }

  async *watch(reference: string, signal: AbortSignal): AsyncIterable<Backup> {
    const { id } = await this.#row(reference);
    const changes = changesOf(signal, (wake) => {
      const stop = this.#desk.engine.onChange((run) => {
        if (run.id === id) wake();
      });
      this.#wakes.push(wake);
      return () => {
        stop();
        this.#wakes = this.#wakes.filter((other) => other !== wake);
      };
    });
    for await (const _ of changes) {
      const view = await this.get(id);
      yield view;
      if (view.state !== 'running') return;
    }
  }

  /** Of any id: what a backup that has ended left behind is nobody's any more. */
  async stateOf(id: string): Promise<OtherBackup> {
    const run = await this.#desk.engine.run(id);
    if (run !== undefined && run.endedMs === undefined) return 'running';
    const row = await this.#desk.rows.find(id);
    if (row === undefined) return 'unknown';
    return row.state === 'running' ? 'running' : 'ended';
  }

  /** News of a job, from the workflow. */
  progress(backupId: string, view: JobView): void {
    this.#jobs.set(backupId, { view, atMs: this.#desk.clock.now() });
  }

  /** What a backup waits for before it begins, from the workflow; null: nothing. */
  waits(backupId: string, because: string | null): void {
    if (because !== null) this.#waits.set(backupId, because);
    else if (!this.#waits.delete(backupId)) return;
    for (const wake of this.#wakes) wake();
  }

  /** What follows when a backup's run has ended; repeatable. */
  async settled(run: RunView, input: BackupInput): Promise<void> {
    const id = input.backupId;
    const begun = resultOf<{ warnings?: readonly string[] }>(run, 'Begin');
    const read = resultOf<
      Pick<BackupRow, 'savesetId' | 'cost' | 'kind' | 'consistency'> & { warning?: string }
    >(run, 'Read');
    const finish = resultOf<{ warning?: string }>(run, 'Finish');
    // What is stored stays stored, whatever came after it.
    const state = read !== undefined || run.state === 'done' ? 'done' : endOf(run);
    const warnings = [...(begun?.warnings ?? [])];
    if (read?.warning !== undefined) warnings.push(read.warning);
    if (finish?.warning !== undefined) warnings.push(finish.warning);
    if (state !== run.state) warnings.push(`it was stored already when it was ${run.state}`);
    await this.#desk.rows.update(id, {
      state,
      endedMs: run.endedMs ?? this.#desk.clock.now(),
      error: state === 'done' ? null : (run.error ?? null),
      warnings,
      ...(read === undefined
        ? {}
        : {
            savesetId: read.savesetId,
            cost: read.cost,
            kind: read.kind,
            consistency: read.consistency,
          }),
    });
    this.#jobs.delete(id);
    this.#waits.delete(id);
    for (const wake of this.#wakes) wake();
    const { name } = input.machine;
    const subject = { id, name };
    if (read !== undefined) {
      const message = `${name} is backed up: saveset ${read.savesetId}`;
      await this.#desk.tell(subject, 'info', 'backup.done', message);
    } else if (state === 'cancelled') {
      await this.#desk.tell(subject, 'warning', 'backup.cancelled', `${name}: cancelled`);
    } else {
      const message = `${name}: ${run.error?.message ?? 'failed'}`;
      await this.#desk.tell(subject, 'error', 'backup.failed', message);
    }
    for (const warning of warnings) {
      await this.#desk.tell(subject, 'warning', 'backup.warning', `${name}: ${warning}`);
    }
  }
}

/** Their savesets would be one machine's, and an incremental one of the other's disks. */
function notTellable(name: string, twin: string, uuid: string): RouseError {
  const what = `${name} and ${twin} have the same UUID (${uuid}): their backups could not be told apart`;
  return new RouseError('wrong-state', what, {
    advice: `Give one of them another UUID while it is off (uuid.bios in its .vmx), then back up again.`,
  });
}

function endOf({ state }: RunView): 'cancelled' | 'failed' {
  return state === 'cancelled' ? 'cancelled' : 'failed';
}

/** What a step left, in the shape that taking.ts writes; also when it was undone afterwards. */
function resultOf<T>(run: RunView, step: string): T | undefined {
  return run.steps.find(({ name }) => name === step)?.result as T | undefined;
}

function noBaseOf(savesets: readonly Saveset[]): string {
  return savesets.every(({ kind }) => kind === 'sealed')
    ? 'its savesets were sealed from recoveries, which keeps no record of changes'
    : 'none of its savesets keeps what an incremental one goes on from';
}

/** Labels beyond our own mean that the hypervisor can go on from there. */
function hasLabels(labels: Readonly<Record<string, string>>): boolean {
  return Object.keys(labels).some((label) => !label.startsWith('rouse.'));
}

/** vda, vdb, … as libvirt counts: files have no name of their own in a machine. */
function defaultDiskName(index: number): string {
  const letter = String.fromCharCode('a'.charCodeAt(0) + (index % 26));
  const prefix =
    index < 26 ? '' : String.fromCharCode('a'.charCodeAt(0) + Math.floor(index / 26) - 1);
  return `vd${prefix}${letter}`;
}

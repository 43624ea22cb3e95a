import { isRouseError, RouseError } from '../errors.ts';
import type { BackupPlace, BackupSource, Hypervisor, OtherBackup } from '../hypervisors/port.ts';
import type { Clock } from '../lib/clock.ts';
import type { JobSpec, JobView, Proxy } from '../proxy/port.ts';
import { plural } from '../lib/text.ts';
import { runJob } from '../proxy/jobs-client.ts';
import type { Saveset } from '../vault/api.ts';
import type { Json, RunView, StepContext, Workflow } from '../workflows/api.ts';
import { takingLimits } from './limits.ts';
import type { BackupTurns } from './turns.ts';

/**
 * A backup as a durable workflow. *Begin* waits its turn (turns.ts) and freezes a point in time at the hypervisor, *Read* has the
 * proxy take it in, *Finish* gives the hypervisor its resources back. A killed server goes on with
 * the same point in time; a killed proxy reads it again and stores only what it had not stored.
 */
export type BackupInput = {
  readonly backupId: string;
  readonly machine: { readonly id: string; readonly name: string };
  readonly mtree: string;
  /** The proxy that reads and stores it. Missing in what was begun before there were several. */
  readonly proxy?: string;
  readonly from:
    | {
        readonly kind: 'machine';
        readonly hypervisorId: string;
        /** What the hypervisor calls it, where that is not its UUID. */
        readonly managedId?: string;
        readonly scratchDirectory: string;
        /** The saveset to go on from, with the labels its backup left; null: read everything. */
        readonly base: {
          readonly savesetId: string;
          readonly labels: { readonly [key: string]: string };
        } | null;
        /** Why there is no such saveset, although there are some. */
        readonly noBase?: string;
      }
    | {
        readonly kind: 'files';
        readonly disks: readonly {
          readonly name: string;
          readonly path: string;
          readonly format?: string;
        }[];
        readonly configuration: string | null;
        readonly nvram: string | null;
      };
};

/** What the steps act on. */
export interface BackupWorld {
  readonly clock: Clock;
  readonly turns: BackupTurns;
  /** Null: it waits no longer. */
  waits(backupId: string, because: string | null): void;
  /** Whether a backup that left something behind is still under way. */
  stateOf(backupId: string): Promise<OtherBackup>;
  /** undefined: the one beside this server. */
  proxy(name: string | undefined): Promise<Proxy>;
  hypervisor(id: string): Promise<Hypervisor>;
  /** Configuration and nvram between Begin and Read: too large for the journal. */
  keepFiles(backupId: string, files: BackupSource['files']): Promise<void>;
  keptFiles(backupId: string): Promise<BackupSource['files']>;
  dropFiles(backupId: string): Promise<void>;
  savesetStored(saveset: Saveset, proxy: string | undefined): Promise<void>;
  begun(backupId: string, source: BackupSource): Promise<void>;
  progress(backupId: string, view: JobView): void;
  settled(run: RunView, input: BackupInput): Promise<void>;
}

/** The label by which recovery knows where the machine came from. */
export const hypervisorLabel = 'rouse.hypervisor';

type Context = StepContext<BackupInput>;

function managedIdOf({ machine, from }: BackupInput): string {
  return (from.kind === 'machine' ? from.managedId : undefined) ?? machine.id;
}

export function backupWorkflow(world: BackupWorld): Workflow<BackupInput> {
  return {
    kind: 'backup.run',
    steps: [
      {
        number: 1,
        name: 'Begin',
        attemptsMax: 3,
        run: (context) => begin(world, context),
        undo: (context) => takeBack(world, context),
      },
      {
        number: 2,
        name: 'Read',
        attemptsMax: 3,
        run: (context) => read(world, context),
        undo: (context) => stopReading(world, context),
      },
      { number: 3, name: 'Finish', run: (context) => finish(world, context) },
    ],
    settled: (run, input) => {
      world.turns.leave(input.backupId);
      return world.settled(run, input);
    },
  };
}

async function begin(world: BackupWorld, context: Context): Promise<Json> {
  const { input } = context;
  const { from } = input;
  if (from.kind === 'files') {
    const takenAtMs = world.clock.now();
    return { detail: `${plural(from.disks.length, 'file')}`, takenAtMs };
  }
  const hypervisor = await world.hypervisor(from.hypervisorId);
  // No snapshot grows while its backup waits.
  const places = (await hypervisor.backupPlaces?.(managedIdOf(input))) ?? [];
  await takeTurn(world, context, places, false);
  const takenAtMs = world.clock.now();
  const begun = await hypervisor.beginBackup({
    machineId: managedIdOf(input),
    token: input.backupId,
    scratchDirectory: from.scratchDirectory,
    otherBackup: (token) => world.stateOf(token),
    ...(from.base === null ? {} : { since: from.base.labels }),
  });
  const { noBase } = from;
  const source = noBase === undefined ? begun : { ...begun, fullBecause: noBase };
  await world.keepFiles(input.backupId, source.files);
  await world.begun(input.backupId, source);
  const labels = { ...source.labels, [hypervisorLabel]: from.hypervisorId };
  const lean = { ...source, labels, files: [] };
  return {
    detail: `${source.kind}, ${plural(source.disks.length, 'disk')}, ${source.consistency}-consistent`,
    takenAtMs: source.takenAtMs ?? takenAtMs,
    places: places.map((place) => ({ ...place })),
    warnings: [...(source.warnings ?? [])],
    source: JSON.stringify(lean),
  };
}

/** What Begin left. */
interface Begun {
  readonly takenAtMs: number;
  readonly source?: string;
  readonly places?: readonly BackupPlace[];
}

async function takeTurn(
  world: BackupWorld,
  { input, signal }: Context,
  places: readonly BackupPlace[],
  hasBegun: boolean,
): Promise<void> {
  const { backupId } = input;
  const waits = (because: string) => world.waits(backupId, because);
  try {
    await world.turns.enter(backupId, places, { hasBegun, signal, waits });
  } finally {
    world.waits(backupId, null);
  }
}

async function end(
  world: BackupWorld,
  { input }: Context,
  outcome: 'stored' | 'failed',
): Promise<void> {
  const { from } = input;
  if (from.kind === 'files') return;
  const hypervisor = await world.hypervisor(from.hypervisorId);
  await hypervisor.endBackup(managedIdOf(input), input.backupId, outcome);
  await world.dropFiles(input.backupId);
}

/**
 * A cancel may come when the saveset is stored already: then its checkpoint is where the next
 * backup goes on from, and has to stay.
 */
async function takeBack(world: BackupWorld, context: Context): Promise<void> {
  world.turns.leave(context.input.backupId);
  try {
    await end(world, context, context.result('Read') === undefined ? 'failed' : 'stored');
  } catch (error) {
    // A hypervisor that was removed meanwhile holds nothing of ours that could be ended.
    if (!isRouseError(error, 'not-found')) throw error;
    await world.dropFiles(context.input.backupId);
  }
}

async function read(world: BackupWorld, context: Context): Promise<Json> {
  const { input } = context;
  // Written by `begin` of the same release's journal.
  const begun = context.result('Begin') as unknown as Begun;
  await takeTurn(world, context, begun.places ?? [], true);
  const source = sourceOf(begun);
  let view: JobView;
  try {
    view = await runRead(world, context, begun, source);
  } catch (error) {
    const whole = await wholeInstead(world, context, source, error);
    if (whole === undefined) throw error;
    await world.begun(input.backupId, whole);
    view = await runRead(world, context, begun, whole);
  }
  if (view.result?.kind !== 'saveset') throw new RouseError('internal', 'no saveset was made');
  const { saveset } = view.result;
  await world.savesetStored(saveset, input.proxy);
  const warning = await poweredOnWarning(world, input, begun);
  return {
    detail: `saveset ${saveset.id}`,
    ...(warning === undefined ? {} : { warning }),
    savesetId: saveset.id,
    kind: saveset.kind,
    consistency: saveset.consistency,
    cost: { ...saveset.cost },
  };
}

function sourceOf({ source = '{}' }: Begun): BackupSource {
  return JSON.parse(source) as BackupSource;
}

function runRead(
  world: BackupWorld,
  context: Context,
  begun: Begun,
  source: BackupSource,
): Promise<JobView> {
  const { input, signal } = context;
  return patiently(world, context, async () => {
    const proxy = await world.proxy(input.proxy);
    let ours: unknown;
    const spec = async () => {
      try {
        return await jobSpec(world, input, begun, source);
      } catch (error) {
        ours = error;
        throw error;
      }
    };
    const news = (job: JobView) => {
      if (job.doneBytes > 0) world.waits(input.backupId, null);
      world.progress(input.backupId, job);
      context.progress({ done: job.doneBytes, total: job.totalBytes, unit: 'bytes' });
    };
    try {
      return await runJob(proxy, spec, signal, news);
    } catch (error) {
      throw error === ours ? error : asSeenBy(input.proxy, error);
    }
  });
}

/** Where the server is well, the way from the proxy's machine may be shut: it is said whose it is. */
function asSeenBy(proxy: string | undefined, error: unknown): unknown {
  const isAway =
    isRouseError(error, 'hypervisor-unreachable') || isRouseError(error, 'host-unreachable');
  if (!isAway || proxy === undefined) return error;
  return new RouseError(error.code, `proxy ${proxy}: ${error.message}`, {
    advice: `${error.advice} Proxy ${proxy} itself has to reach it.`,
    cause: error,
  });
}

/**
 * When what changed turns out to be unreadable only while it is read, the same point in time is
 * read whole. What another try may mend is left to it.
 */
async function wholeInstead(
  world: BackupWorld,
  { input, signal }: Context,
  source: BackupSource,
  error: unknown,
): Promise<BackupSource | undefined> {
  const doubts = ['corrupt-data', 'not-found', 'forbidden', 'hypervisor-unsupported'] as const;
  const isDoubt = doubts.some((code) => isRouseError(error, code));
  if (!isDoubt || signal.aborted || source.kind !== 'incremental') return undefined;
  if (input.from.kind === 'files' || !isRouseError(error)) return undefined;
  const hypervisor = await world.hypervisor(input.from.hypervisorId);
  return hypervisor.readWhole?.(source, `what changed could not be read: ${error.message}`);
}

/**
 * Disks of a machine that is off and that are no files do not show that they were written to
 * (proxy/runner.ts refuses those that do): only that the machine runs now.
 */
async function poweredOnWarning(
  world: BackupWorld,
  input: BackupInput,
  begun: Begun,
): Promise<string | undefined> {
  const { from, machine } = input;
  if (from.kind === 'files') return undefined;
  const { consistency, disks } = sourceOf(begun);
  const cannotTell = disks.filter(({ access }) => access.via === 'file' && !access.stamp);
  if (consistency !== 'offline' || cannotTell.length === 0) return undefined;
  const names = cannotTell.map(({ name }) => name).join(', ');
  try {
    const hypervisor = await world.hypervisor(from.hypervisorId);
    if ((await hypervisor.machine(managedIdOf(input))).power === 'off') return undefined;
  } catch (error) {
    if (!isRouseError(error)) throw error;
    return `whether ${machine.name} stayed off while ${names} was read is not known: ${error.message}`;
  }
  return (
    `${machine.name} was powered on while it was backed up as powered off: ${names} may hold a mix ` +
    'of before and after; back it up again'
  );
}

const awayCodes: ReadonlySet<string> = new Set([
  ...['proxy-unreachable', 'host-unreachable', 'hypervisor-unreachable'],
]);

/** A proxy or a hypervisor that restarts fails no backup: it is waited for, which is shown. */
async function patiently<T>(
  world: BackupWorld,
  { input: { backupId }, signal }: Context,
  work: () => Promise<T>,
): Promise<T> {
  try {
    for (let attempt = 1; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        const isAway = isRouseError(error) && awayCodes.has(error.code);
        if (!isAway || signal.aborted || attempt >= takingLimits.proxyAttemptsMax) throw error;
        world.waits(backupId, error.message);
      }
      await world.clock.sleep(takingLimits.proxyPauseMs, signal);
    }
  } finally {
    world.waits(backupId, null);
  }
}

async function jobSpec(
  world: BackupWorld,
  input: BackupInput,
  begun: Begun,
  source: BackupSource,
): Promise<JobSpec> {
  const common = {
    id: input.backupId,
    mtree: input.mtree,
    machine: input.machine,
    takenAtMs: begun.takenAtMs,
  };
  const { from } = input;
  if (from.kind === 'files') {
    return {
      kind: 'import',
      ...common,
      disks: from.disks,
      ...(from.configuration === null ? {} : { configuration: from.configuration }),
      ...(from.nvram === null ? {} : { nvram: from.nvram }),
    };
  }
  const files = await world.keptFiles(input.backupId);
  const pass = await (await world.hypervisor(from.hypervisorId)).backupPass?.();
  return {
    kind: 'backup',
    ...common,
    source: { ...source, files },
    ...(pass === undefined ? {} : { pass }),
    ...(from.base === null ? {} : { baseSavesetId: from.base.savesetId }),
  };
}

async function stopReading(world: BackupWorld, { input }: Context): Promise<void> {
  try {
    await (await world.proxy(input.proxy)).cancelJob(input.backupId);
  } catch (error) {
    // A proxy that knows no such job has nothing to stop.
    if (!isRouseError(error, 'not-found')) throw error;
  }
}

/** The saveset is stored: trouble with giving resources back is a warning, not a failed backup. */
async function finish(world: BackupWorld, context: Context): Promise<Json> {
  for (let attempt = 1; ; attempt++) {
    try {
      await end(world, context, 'stored');
      return { detail: 'nothing is left at the hypervisor' };
    } catch (error) {
      if (attempt >= takingLimits.finishAttemptsMax) {
        const why = error instanceof Error ? error.message : String(error);
        const stored = `the backup is stored, but its job at the hypervisor did not end: ${why}`;
        const warning = `${stored}; it is tried again by itself`;
        return { detail: warning, warning };
      }
    }
    await world.clock.sleep(takingLimits.finishPauseMs, context.signal);
  }
}

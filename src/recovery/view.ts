import type { RecoveryRow } from '../catalog/recoveries.ts';
import type { CloneView } from '../proxy/port.ts';
import type { RunView, StepView } from '../workflows/api.ts';
import { isOpening } from './world.ts';
import type { RelocateInput } from './relocating.ts';
import type { Recovery, RecoveryStep } from './schema.ts';

/** The thirteen steps by name, as people see them even before they begin. */
export const stepNames: readonly string[] = [
  'Device',
  'Proxy',
  'Host',
  'Hand over',
  'Ask for the copy',
  'Clone',
  'Export',
  'Datastore',
  'Configure',
  'Power on',
  'Available',
  'Relocate',
  'Clean up',
];

/** File-level recovery configures nothing: its disks are attached. */
export function stepNamesOf(mode: Recovery['mode']): readonly string[] {
  return mode === 'flr' ? stepNames.with(8, 'Attach') : stepNames;
}

/** Steps that a mode has no use for. */
export const skippedSteps: Readonly<Record<Recovery['mode'], readonly number[]>> = {
  instant: [],
  publish: [8, 9, 10],
  new: [6, 7],
  flr: [10],
};

/** What a view is made of besides the row. */
export interface ViewParts {
  readonly row: RecoveryRow;
  /** All runs of the recovery, oldest first. */
  readonly runs: readonly RunView[];
  readonly savesetTakenAtMs: number;
  readonly machineName: string;
  readonly hypervisorName: string | null;
  readonly clone: CloneView | undefined;
  readonly plannedRelocation: { readonly target: string; readonly atMs: number | null } | null;
  readonly hasPicture: boolean;
  /** Mode `flr`: the machine that the disks are attached to. */
  readonly target: Recovery['target'];
}

type Outcome = {
  readonly detail?: string;
  readonly skipped?: boolean;
  readonly path?: string;
  readonly address?: string;
  readonly nfsPort?: number;
  readonly mountPort?: number;
  readonly disks?: Recovery['disks'];
  readonly attached?: Recovery['attached'];
};

export function recoveryView(parts: ViewParts): Recovery {
  const { row } = parts;
  const open = parts.runs.findLast(isOpening);
  const shared = outcome(open, 'Export');
  const cloned = outcome(open, 'Clone');
  const gone = row.state === 'done' || row.state === 'cancelled' || row.state === 'failed';
  return {
    id: row.id,
    machine: { id: row.machineId, name: parts.machineName },
    saveset: { id: row.savesetId, takenAtMs: parts.savesetTakenAtMs },
    mode: row.mode,
    state: row.state,
    name: row.name,
    hypervisor: parts.hypervisorName,
    host: row.host,
    proxy: row.proxy,
    datastore: row.datastoreName,
    clonePath: cloned?.path ?? null,
    export: gone ? null : exportOf(shared),
    disks: cloned?.disks ?? [],
    target: parts.target,
    attached: row.state === 'available' ? (outcome(open, 'Attach')?.attached ?? []) : [],
    machineId: row.hypervisorMachineId,
    createdMs: row.createdMs,
    availableMs: row.availableMs,
    timeToAvailableMs: row.timeToAvailableMs,
    leaseEndsMs: row.leaseEndMs,
    endedMs: row.endedMs,
    writtenBytes: parts.clone?.writtenBytes ?? 0,
    warnings: isPruned(parts) ? [...row.warnings, prunedText] : row.warnings,
    error: row.error,
    steps: isPruned(parts) ? prunedSteps(row) : stepsOf(parts.runs, row.mode),
    relocation: relocationOf(parts),
    hasPicture: parts.hasPicture,
  };
}

/** Long ended: the journal of its runs is gone (workflows/pruning.ts), the row and events are kept. */
function isPruned({ row, runs }: ViewParts): boolean {
  return runs.length === 0 && row.endedMs !== null;
}

const prunedText =
  'It ended long ago: what its single steps did is no longer kept, its events are.';

function prunedSteps({ mode }: RecoveryRow): RecoveryStep[] {
  return stepNamesOf(mode).map((name, index) => ({
    number: index + 1,
    ...partsOf(name, undefined),
    state: 'skipped',
    subSteps: [],
  }));
}

function exportOf(shared: Outcome | undefined): Recovery['export'] {
  if (shared?.path === undefined) return null;
  const { path, address = '', nfsPort = 0, mountPort = 0 } = shared;
  return { path, address, nfsPort, mountPort };
}

function latest(runs: readonly RunView[], kind: string): RunView | undefined {
  return runs.findLast((run) => run.kind === kind);
}

/** A recovery that was parked and resumed has its last two steps before it again. */
function sinceOpened(runs: readonly RunView[]): readonly RunView[] {
  return runs.slice(runs.findLastIndex(isOpening) + 1);
}

function outcome(run: RunView | undefined, step: string): Outcome | undefined {
  const result = run?.steps.find(({ name }) => name === step)?.result;
  // Steps of this feature answer objects of this shape (opening.ts).
  return result === undefined ? undefined : (result as Outcome);
}

function relocationOf(parts: ViewParts): Recovery['relocation'] {
  const run = latest(sinceOpened(parts.runs), 'recovery.relocate');
  if (run === undefined) {
    const planned = parts.plannedRelocation;
    if (planned === null) return null;
    return { target: planned.target, doneBytes: 0, totalBytes: 0, atMs: planned.atMs, error: null };
  }
  const { to } = run.input as RelocateInput;
  const [step] = run.steps;
  const moved = (step?.result as { bytes?: number } | undefined)?.bytes;
  return {
    target: to.name,
    doneBytes: moved ?? step?.progress?.done ?? 0,
    totalBytes: moved ?? step?.progress?.total ?? 0,
    atMs: run.createdMs,
    error: run.error ?? null,
  };
}

function stepsOf(runs: readonly RunView[], mode: Recovery['mode']): RecoveryStep[] {
  const open = runs.findLast(isOpening);
  const relocate = latest(sinceOpened(runs), 'recovery.relocate');
  const close = latest(sinceOpened(runs), 'recovery.close');
  return stepNamesOf(mode).map((name, index) => {
    const number = index + 1;
    if (number === 13) return cleanUpStep(close);
    // A full restore that the manager makes relocates as a part of its opening.
    const run = number === 12 ? (relocate ?? open) : open;
    const step = run?.steps.find((candidate) => candidate.number === number);
    return { number, ...partsOf(name, step, run?.stuck?.message), subSteps: [] };
  });
}

function cleanUpStep(close: RunView | undefined): RecoveryStep {
  const steps = close?.steps ?? [];
  const subSteps = steps.map((step) => partsOf(step.name, step));
  const running = steps.find(({ state }) => state === 'running');
  const failed = subSteps.find(({ state }) => state === 'failed');
  const done = close?.state === 'done';
  const details = subSteps.flatMap(({ detail }) => (detail === null ? [] : [detail]));
  return {
    number: 13,
    name: 'Clean up',
    state:
      failed !== undefined ? 'failed' : done ? 'done' : close === undefined ? 'waiting' : 'running',
    startedMs: steps[0]?.startedMs ?? null,
    endedMs: close?.endedMs ?? null,
    progress: null,
    detail: failed?.detail ?? running?.error?.message ?? (details.join('; ') || null),
    subSteps,
  };
}

type Parts = Omit<RecoveryStep, 'number' | 'subSteps'>;

/** `stuck`: why it cannot be taken back yet. */
function partsOf(name: string, step: StepView | undefined, stuck?: string): Parts {
  const result = step?.result as Outcome | undefined;
  const told = step?.error?.message ?? result?.detail ?? null;
  return {
    name,
    state: stateOf(step, result),
    startedMs: step?.startedMs ?? null,
    endedMs: step?.endedMs ?? null,
    progress: progressOf(step),
    detail: step?.state === 'undoing' ? (stuck ?? null) : told,
  };
}

function progressOf(step: StepView | undefined): Parts['progress'] {
  const progress = step?.progress;
  if (progress === undefined || step?.state !== 'running') return null;
  return { done: progress.done, total: progress.total, unit: progress.unit };
}

function stateOf(step: StepView | undefined, result: Outcome | undefined): RecoveryStep['state'] {
  if (step === undefined) return 'waiting';
  if (step.state === 'done' && result?.skipped === true) return 'skipped';
  return step.state === 'undoing' ? 'running' : step.state;
}

import type { Selectable } from 'kysely';
import type { RunsTable, StepsTable } from '../database/tables.ts';
import { errorTable, RouseError } from '../errors.ts';
import { workflowLimits } from '../limits.ts';
import type { Json, Step, Workflow } from './api.ts';

/**
 * What a run does next, from its rows alone: no clock, no SQL, no waiting. `decide` changes the
 * rows it is given; the journal commits them before anything is done.
 */
export type RunRow = Selectable<RunsTable>;
export type StepRow = Selectable<StepsTable>;

/** How the last action ended; undefined: nothing was done since the run was claimed or waited. */
export type Ended =
  | { readonly kind: 'ran'; readonly position: number; readonly result: string }
  | { readonly kind: 'run-failed'; readonly position: number; readonly error: RouseError }
  | { readonly kind: 'undone'; readonly position: number }
  | { readonly kind: 'undo-failed'; readonly position: number; readonly error: RouseError }
  /** By a shutdown: it counts neither as done nor as failed. */
  | { readonly kind: 'interrupted'; readonly position: number }
  | { readonly kind: 'settled' }
  | { readonly kind: 'settle-failed'; readonly error: RouseError };

export type Action =
  | { readonly kind: 'run'; readonly position: number }
  | { readonly kind: 'undo'; readonly position: number }
  /** Before the next attempt: the back-off after that many failures. */
  | {
      readonly kind: 'wait';
      readonly failures: number;
      readonly undoing: boolean;
      readonly isAway?: boolean;
    }
  | { readonly kind: 'settle' }
  | { readonly kind: 'end' }
  /** The engine stops: nothing new is begun. */
  | { readonly kind: 'pause' };

export interface Decision {
  readonly run: RunRow;
  readonly steps: StepRow[];
  readonly workflow: Workflow;
  readonly ended: Ended | undefined;
  readonly nowMs: number;
  readonly pausing: boolean;
}

export function decide(decision: Decision): Action {
  apply(decision);
  if (decision.run.outcome === null) {
    const action = goForward(decision);
    if (action !== undefined) return action;
  }
  if (decision.run.outcome !== 'done') {
    const action = goBack(decision);
    if (action !== undefined) return action;
  }
  return finish(decision);
}

function apply({ run, steps, ended, nowMs }: Decision): void {
  if (ended === undefined) return;
  if (ended.kind === 'settled') return;
  if (ended.kind === 'settle-failed') {
    run.stuck = storedError(ended.error);
    return;
  }
  const step = at(steps, ended.position);
  switch (ended.kind) {
    case 'ran':
      Object.assign(step, { state: 'done', endedMs: nowMs, result: ended.result, error: null });
      return;
    case 'run-failed':
      // Attempts at which nobody answered are counted by themselves.
      if (!away.has(ended.error.code)) step.failures += 1;
      Object.assign(step, { state: 'failed', endedMs: nowMs, error: storedError(ended.error) });
      return;
    case 'undone':
      Object.assign(step, { state: 'undone', endedMs: nowMs, undoError: null });
      run.stuck = null;
      return;
    case 'undo-failed':
      step.undoError = storedError(ended.error);
      run.stuck = step.undoError;
      return;
    case 'interrupted':
      if (step.state === 'running') step.state = 'waiting';
  }
}

/** The next step, or undefined once `outcome` is decided. */
function goForward(decision: Decision): Action | undefined {
  const { run, steps, workflow, ended, nowMs } = decision;
  if (run.cancelMs !== null) return conclude(run, 'cancelled');
  const strange = steps.find((step) => wasBegun(step) && !sameStep(step, workflow));
  if (strange !== undefined) return conclude(run, 'failed', unknownStep(run, strange, workflow));
  const next = steps.find((step) => step.state !== 'done');
  if (next === undefined) return conclude(run, 'done');
  if (next.state === 'running') {
    next.crashes += 1;
    if (next.crashes > workflowLimits.crashesMax) {
      next.state = 'failed';
      next.error = storedError(crashed(next));
      return conclude(run, 'failed', crashed(next));
    }
  }
  if (ended?.kind === 'run-failed' && ended.position === next.position) {
    const isAway = away.has(ended.error.code);
    const { attemptsMax: usual = 1, awayAttemptsMax = usual } = workflow.steps[next.position] ?? {};
    const attemptsMax = isAway ? awayAttemptsMax : usual;
    if (next.failures >= attemptsMax || hopeless.has(ended.error.code)) {
      return conclude(run, 'failed', ended.error);
    }
    return { kind: 'wait', failures: next.failures, undoing: false, isAway };
  }
  if (decision.pausing) {
    next.state = 'waiting';
    return { kind: 'pause' };
  }
  run.state = 'running';
  run.stuck = null;
  next.state = 'running';
  next.attempts += 1;
  next.startedMs ??= nowMs;
  next.endedMs = null;
  return { kind: 'run', position: next.position };
}

/** The next undo, or undefined when nothing is left to undo. */
function goBack(decision: Decision): Action | undefined {
  const { run, steps, workflow, ended } = decision;
  for (const step of steps.toReversed()) {
    if (!wasBegun(step) || step.state === 'undone') continue;
    const known = findStep(workflow, step);
    if (known !== undefined && known.undo === undefined) {
      if (step.state !== 'done') step.state = 'failed';
      continue;
    }
    run.state = 'undoing';
    step.state = 'undoing';
    if (ended?.kind === 'undo-failed' && ended.position === step.position) {
      return { kind: 'wait', failures: step.undoAttempts, undoing: true };
    }
    if (decision.pausing) return { kind: 'pause' };
    step.undoAttempts += 1;
    if (known === undefined) {
      step.undoError = storedError(unknownStep(run, step, workflow));
      run.stuck = step.undoError;
      return { kind: 'wait', failures: step.undoAttempts, undoing: true };
    }
    return { kind: 'undo', position: step.position };
  }
  return undefined;
}

function finish({ run, workflow, ended, nowMs, pausing }: Decision): Action {
  if (workflow.settled !== undefined && ended?.kind !== 'settled') {
    if (ended?.kind === 'settle-failed') return { kind: 'wait', failures: 1, undoing: true };
    return pausing ? { kind: 'pause' } : { kind: 'settle' };
  }
  run.state = run.outcome ?? 'failed';
  run.endedMs = nowMs;
  run.stuck = null;
  return { kind: 'end' };
}

function conclude(run: RunRow, outcome: RunRow['outcome'], error?: RouseError): undefined {
  run.outcome = outcome;
  if (error !== undefined) run.error = storedError(error);
}

/** No number of attempts mends these. */
const hopeless: ReadonlySet<string> = new Set([
  'bad-request',
  'unauthorised',
  'forbidden',
  'already-exists',
  'unsupported-format',
  'newer-format',
  'hypervisor-unsupported',
  'missing-tool',
  'corrupt-data',
  'cancelled',
]);

/** Whoever was asked does not answer: they restart, and come back. */
const away: ReadonlySet<string> = new Set(['hypervisor-unreachable']);

export function wasBegun(step: StepRow): boolean {
  return step.attempts > 0;
}

/** By position, number and name: going on with anything else would do the wrong thing. */
function sameStep(row: StepRow, workflow: Workflow): boolean {
  const step = workflow.steps[row.position];
  return step?.name === row.name && step.number === row.number;
}

export function findStep(workflow: Workflow, row: StepRow): Step<Json> | undefined {
  return workflow.steps.find((step) => step.name === row.name && step.number === row.number);
}

function at(steps: readonly StepRow[], position: number): StepRow {
  const step = steps[position];
  if (step === undefined) throw new RouseError('internal', `there is no step at ${position}`);
  return step;
}

function unknownStep(run: RunRow, row: StepRow, workflow: Workflow): RouseError {
  const here = workflow.steps[row.position];
  const known = here === undefined ? 'no step' : `step ${here.number} "${here.name}"`;
  return new RouseError(
    'wrong-state',
    `run ${run.id} (${run.kind}) recorded step ${row.number} "${row.name}" ` +
      `where this version has ${known}`,
    { advice: 'Start the version of Rouse that began this run and let it end there.' },
  );
}

function crashed(step: StepRow): RouseError {
  return new RouseError(
    'internal',
    `the server died ${step.crashes} times during step ${step.number} "${step.name}"`,
  );
}

export function storedError(error: RouseError): string {
  return JSON.stringify({ code: error.code, message: error.message, advice: error.advice });
}

export interface StoredError {
  readonly code: string;
  readonly message: string;
  readonly advice: string;
}

export function errorFrom(text: string): StoredError {
  const { internal } = errorTable;
  return { code: 'internal', message: text, advice: internal.advice, ...JSON.parse(text) };
}

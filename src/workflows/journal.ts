import { type Database, nextNumber } from '../database/database.ts';
import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import { workflowLimits } from '../limits.ts';
import type { Json, RunView, StepView, Workflow } from './api.ts';
import type { Claim, Claims } from './claims.ts';
import { type Action, decide, type Ended, errorFrom, wasBegun } from './decide.ts';
import type { RunRow, StepRow } from './decide.ts';

/**
 * Runs and their steps in SQL. Each public function is one transaction (or joins one); who listens
 * hears of a change once it is durable.
 */
export interface Progressed {
  readonly action: Action;
  readonly run: RunRow;
  readonly steps: readonly StepRow[];
}

export interface RunFilter {
  readonly subject?: string;
  readonly kind?: string;
  readonly active?: boolean;
}

export class Journal {
  readonly #database: Database;
  readonly #clock: Clock;
  readonly #claims: Claims;
  readonly #changed: (run: RunView) => void;

  constructor(database: Database, clock: Clock, claims: Claims, changed: (run: RunView) => void) {
    this.#database = database;
    this.#clock = clock;
    this.#claims = claims;
    this.#changed = changed;
  }

  async create(workflow: Workflow, id: string, subject: string, input: Json): Promise<RunView> {
    const text = jsonText(input, `the input of ${workflow.kind} ${id}`);
    return this.#database.transaction(async () => {
      const existing = await this.view(id);
      if (existing !== undefined) return sameRun(existing, workflow.kind, subject);
      const { query } = this.#database;
      const run: RunRow = {
        id,
        kind: workflow.kind,
        subject,
        seq: await nextNumber(this.#database, 'runs'),
        state: 'waiting',
        outcome: null,
        input: text,
        error: null,
        stuck: null,
        cancelMs: null,
        createdMs: this.#clock.now(),
        endedMs: null,
        version: 1,
      };
      const steps = workflow.steps.map((_, position) => freshStep(id, workflow, position));
      await query.insertInto('runs').values(run).execute();
      if (steps.length > 0) await query.insertInto('steps').values(steps).execute();
      return this.#publish(run, steps);
    });
  }

  /** Writes the wish down; false when there is nothing to cancel any more. */
  async cancel(id: string): Promise<boolean> {
    return this.#database.transaction(async () => {
      const run = await this.#lock(id);
      if (run === undefined) throw new RouseError('not-found', `no run is called "${id}"`);
      if (run.outcome !== null || run.endedMs !== null || run.cancelMs !== null) return false;
      run.cancelMs = this.#clock.now();
      const steps = await this.#steps(id);
      if (run.state === 'waiting' && !steps.some(wasBegun)) run.outcome = 'cancelled';
      await this.#saveRun(run);
      this.#publish(run, steps);
      return true;
    });
  }

  /** Writes down how the last action ended and what comes next. Throws `ClaimLost`. */
  async proceed(
    claim: Claim,
    id: string,
    workflow: Workflow,
    ended: Ended | undefined,
    pausing: boolean,
  ): Promise<Progressed> {
    return this.#database.transaction(async () => {
      await this.#claims.hold(claim);
      const run = await this.#lock(id);
      if (run === undefined) throw new RouseError('internal', `run ${id} has vanished`);
      const before = await this.#steps(id);
      if (run.endedMs !== null) return { action: { kind: 'end' }, run, steps: before };
      const steps = await this.#upToDate(run, before, workflow);
      const old = steps.map((step) => JSON.stringify(step));
      const nowMs = this.#clock.now();
      if (ended?.kind === 'ran') await recordStep(workflow, run, ended);
      const action = decide({ run, steps, workflow, ended, nowMs, pausing });
      await this.#saveRun(run);
      for (const [index, step] of steps.entries()) {
        if (JSON.stringify(step) !== old[index]) await this.#saveStep(step);
      }
      if (action.kind === 'end') await this.#claims.release(claim);
      this.#publish(run, steps);
      return { action, run, steps };
    });
  }

  /** Says why a run cannot go on, when no workflow of its kind is registered. */
  async markStuck(id: string, error: string): Promise<void> {
    await this.#database.transaction(async () => {
      const run = await this.#lock(id);
      if (run === undefined || run.endedMs !== null || run.stuck === error) return;
      run.stuck = error;
      await this.#saveRun(run);
      this.#publish(run, await this.#steps(id));
    });
  }

  /** The first unfinished run of each subject, and runs that were cancelled before they began. */
  async ready(): Promise<readonly RunRow[]> {
    return this.#database.query
      .selectFrom('runs')
      .selectAll()
      .where('endedMs', 'is', null)
      .where((eb) =>
        eb.or([
          eb(
            'seq',
            'in',
            eb
              .selectFrom('runs as other')
              .select((inner) => inner.fn.min<number>('other.seq').as('seq'))
              .where('other.endedMs', 'is', null)
              .groupBy('other.subject'),
          ),
          eb.and([eb('state', '=', 'waiting'), eb('outcome', 'is not', null)]),
        ]),
      )
      .orderBy('seq')
      .execute();
  }

  /** Those of the ids that somebody wants cancelled. */
  async cancelled(ids: readonly string[]): Promise<readonly string[]> {
    if (ids.length === 0) return [];
    const rows = await this.#database.query
      .selectFrom('runs')
      .select('id')
      .where('id', 'in', ids)
      .where('cancelMs', 'is not', null)
      .execute();
    return rows.map((row) => row.id);
  }

  async view(id: string): Promise<RunView | undefined> {
    const run = await this.#database.query
      .selectFrom('runs')
      .selectAll()
      .where('id', '=', id)
      .executeTakeFirst();
    return run === undefined ? undefined : viewOf(run, await this.#steps(id));
  }

  async views(filter: RunFilter): Promise<readonly RunView[]> {
    let query = this.#database.query.selectFrom('runs').selectAll();
    if (filter.subject !== undefined) query = query.where('subject', '=', filter.subject);
    if (filter.kind !== undefined) query = query.where('kind', '=', filter.kind);
    if (filter.active === true) query = query.where('endedMs', 'is', null);
    if (filter.active === false) query = query.where('endedMs', 'is not', null);
    const newest = query.orderBy('seq', 'desc').limit(workflowLimits.runsListedMax);
    const runs = (await newest.execute()).toReversed();
    if (runs.length === 0) return [];
    const steps = await this.#database.query
      .selectFrom('steps')
      .selectAll()
      .where(
        'runId',
        'in',
        runs.map((run) => run.id),
      )
      .orderBy('position')
      .execute();
    const byRun = Map.groupBy(steps, (step) => step.runId);
    return runs.map((run) => viewOf(run, byRun.get(run.id) ?? []));
  }

  /** Steps that had not begun follow an upgraded workflow; those that had are history. */
  async #upToDate(run: RunRow, rows: StepRow[], workflow: Workflow): Promise<StepRow[]> {
    const begun = rows.filter(wasBegun);
    const wanted = workflow.steps
      .map((_, position) => freshStep(run.id, workflow, position))
      .slice(begun.length);
    const signature = (steps: readonly StepRow[]) =>
      JSON.stringify(steps.map(({ position, number, name }) => [position, number, name]));
    if (run.outcome !== null || signature(rows.slice(begun.length)) === signature(wanted)) {
      return rows;
    }
    const { query } = this.#database;
    await query.deleteFrom('steps').where('runId', '=', run.id).where('attempts', '=', 0).execute();
    if (wanted.length > 0) await query.insertInto('steps').values(wanted).execute();
    return [...begun, ...wanted];
  }

  /** Reads the row and locks it until the transaction ends, on every SQL database. */
  async #lock(id: string): Promise<RunRow | undefined> {
    return this.#database.query
      .updateTable('runs')
      .set((eb) => ({ version: eb('version', '+', 1) }))
      .where('id', '=', id)
      .returningAll()
      .executeTakeFirst();
  }

  #steps(id: string): Promise<StepRow[]> {
    return this.#database.query
      .selectFrom('steps')
      .selectAll()
      .where('runId', '=', id)
      .orderBy('position')
      .execute();
  }

  async #saveRun({ id, state, outcome, error, stuck, cancelMs, endedMs }: RunRow): Promise<void> {
    await this.#database.query
      .updateTable('runs')
      .set({ state, outcome, error, stuck, cancelMs, endedMs })
      .where('id', '=', id)
      .execute();
  }

  async #saveStep({ runId, position, ...rest }: StepRow): Promise<void> {
    await this.#database.query
      .updateTable('steps')
      .set(rest)
      .where('runId', '=', runId)
      .where('position', '=', position)
      .execute();
  }

  #publish(run: RunRow, steps: readonly StepRow[]): RunView {
    const view = viewOf(run, steps);
    this.#database.afterCommit(() => this.#changed(view));
    return view;
  }
}

/** The step's own rows, in the same transaction. */
async function recordStep(
  workflow: Workflow,
  run: RunRow,
  ended: Extract<Ended, { kind: 'ran' }>,
): Promise<void> {
  const step = workflow.steps[ended.position];
  if (step?.record === undefined) return;
  try {
    await step.record(JSON.parse(ended.result) as Json, JSON.parse(run.input) as Json);
  } catch (error) {
    throw new RecordFailed(error);
  }
}

/** A step's `record` threw: the transaction is gone, and the step has failed. */
export class RecordFailed extends Error {
  constructor(cause: unknown) {
    super('record failed', { cause });
  }
}

function freshStep(runId: string, workflow: Workflow, position: number): StepRow {
  const { number = 0, name = '' } = workflow.steps[position] ?? {};
  return {
    runId,
    position,
    number,
    name,
    state: 'waiting',
    attempts: 0,
    failures: 0,
    crashes: 0,
    undoAttempts: 0,
    startedMs: null,
    endedMs: null,
    result: null,
    error: null,
    undoError: null,
  };
}

function sameRun(existing: RunView, kind: string, subject: string): RunView {
  if (existing.kind === kind && existing.subject === subject) return existing;
  throw new RouseError(
    'already-exists',
    `run ${existing.id} is ${existing.kind} of ${existing.subject}, not ${kind} of ${subject}`,
  );
}

export function viewOf(run: RunRow, steps: readonly StepRow[]): RunView {
  return {
    id: run.id,
    kind: run.kind,
    subject: run.subject,
    state: run.state,
    input: JSON.parse(run.input) as Json,
    createdMs: run.createdMs,
    ...(run.endedMs === null ? {} : { endedMs: run.endedMs }),
    steps: steps.map((step) => stepView(run, step)),
    ...(run.error === null ? {} : { error: errorFrom(run.error) }),
    ...(run.stuck === null ? {} : { stuck: errorFrom(run.stuck) }),
  };
}

function stepView(run: RunRow, step: StepRow): StepView {
  const error = step.state === 'undoing' ? (step.undoError ?? step.error) : step.error;
  // A failed attempt that is tried again is no failed step.
  const state = step.state === 'failed' && run.outcome === null ? 'running' : step.state;
  return {
    name: step.name,
    number: step.number,
    state,
    attempts: step.attempts,
    ...(step.startedMs === null ? {} : { startedMs: step.startedMs }),
    ...(step.endedMs === null || state === 'running' ? {} : { endedMs: step.endedMs }),
    ...(step.result === null ? {} : { result: JSON.parse(step.result) as Json }),
    ...(error === null ? {} : { error: errorFrom(error) }),
  };
}

export function jsonText(value: unknown, what: string): string {
  const text = JSON.stringify(value ?? null);
  if (text.length <= workflowLimits.jsonBytesMax) return text;
  throw new RouseError(
    'internal',
    `${what} is ${text.length} characters of JSON; at most ${workflowLimits.jsonBytesMax} are kept`,
  );
}

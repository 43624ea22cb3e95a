import { RouseError, toRouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import type { Random } from '../lib/random.ts';
import { workflowLimits } from '../limits.ts';
import type { Json, RunInterrupted, Step, StepContext, StepProgress, Workflow } from './api.ts';
import { backOffMs } from './back-off.ts';
import { type Claim, ClaimLost } from './claims.ts';
import type { Ended, StepRow } from './decide.ts';
import { type Journal, jsonText, type Progressed, RecordFailed, viewOf } from './journal.ts';

/** What a drive needs of the engine. */
export interface DriveParts {
  readonly journal: Journal;
  readonly clock: Clock;
  readonly random: Random;
  report(error: unknown, where: string): void;
  /** The run's progress has changed; called at most a few times a second. */
  progressed(runId: string): void;
}

/**
 * Drives one claimed run: asks the journal what comes next, does it, says how it ended, until the
 * run ends, the engine stops, or the claim is lost. What was done is never forgotten: a commit that
 * fails is tried again with the same ending.
 */
export class Drive {
  readonly runId: string;
  readonly claim: Claim;
  /** Of the step that runs now. */
  progress: { readonly position: number; readonly progress: StepProgress } | undefined;
  /** False once the run has ended, which releases it, and when it is lost. */
  holdsClaim = true;
  readonly #workflow: Workflow;
  readonly #parts: DriveParts;
  #cancelled = false;
  #stopping = false;
  #lost = false;
  /** Of what is done now; `cancelable` when a cancel may interrupt it. */
  #now: { readonly controller: AbortController; readonly cancelable: boolean } | undefined;
  #publishedMs = Number.NEGATIVE_INFINITY;

  constructor(workflow: Workflow, runId: string, claim: Claim, parts: DriveParts) {
    this.#workflow = workflow;
    this.runId = runId;
    this.claim = claim;
    this.#parts = parts;
  }

  async run(): Promise<void> {
    let ended: Ended | undefined;
    let settleFailures = 0;
    for (;;) {
      const progressed = await this.#proceed(ended);
      if (progressed === undefined) return;
      const { action } = progressed;
      if (action.kind === 'end') this.holdsClaim = false;
      if (action.kind === 'end' || action.kind === 'pause') return;
      if (action.kind === 'run') ended = await this.#runStep(progressed, action.position);
      else if (action.kind === 'undo') ended = await this.#undoStep(progressed, action.position);
      else if (action.kind === 'settle') {
        ended = await this.#settle(progressed);
        settleFailures += 1;
      } else {
        const { undoing, isAway = false } = action;
        await this.#backOff(Math.max(action.failures, settleFailures), undoing, isAway);
        ended = undefined;
      }
    }
  }

  /** The wish is in the journal already; this interrupts what it can. */
  cancel(): void {
    this.#cancelled = true;
    if (this.#now?.cancelable === true) this.#now.controller.abort(reasons.cancelled);
  }

  /** Interrupts without undoing: the next start, or another server, goes on. */
  interrupt(): void {
    this.#stopping = true;
    this.#now?.controller.abort(reasons.shutdown);
  }

  /** Nothing of it may be written any more. */
  lose(): void {
    this.#lost = true;
    this.holdsClaim = false;
    this.interrupt();
  }

  async #proceed(ending: Ended | undefined): Promise<Progressed | undefined> {
    let ended = ending;
    for (let failures = 1; !this.#lost; failures++) {
      try {
        const { claim, runId } = this;
        const pausing = this.#stopping;
        return await this.#parts.journal.proceed(claim, runId, this.#workflow, ended, pausing);
      } catch (error) {
        if (error instanceof ClaimLost) this.lose();
        this.#parts.report(error, `run ${this.runId}`);
        if (error instanceof RecordFailed && ended?.kind === 'ran') {
          const { position } = ended;
          const where = this.#nameOf(position);
          ended = { kind: 'run-failed', position, error: toRouseError(error.cause, where) };
        } else {
          if (this.#stopping) return undefined;
          await this.#backOff(failures, true);
        }
      }
    }
    return undefined;
  }

  async #runStep(progressed: Progressed, position: number): Promise<Ended> {
    const step = this.#stepAt(position);
    const signal = this.#begin(true);
    try {
      signal.throwIfAborted();
      const value = await step.run(this.#context(progressed, position, signal));
      const result = jsonText(value, `the result of ${this.#nameOf(position)}`);
      return { kind: 'ran', position, result };
    } catch (error) {
      if (signal.reason === reasons.shutdown) return { kind: 'interrupted', position };
      return { kind: 'run-failed', position, error: this.#failure(error, position, signal) };
    } finally {
      this.#finish();
    }
  }

  #failure(error: unknown, position: number, signal: AbortSignal): RouseError {
    const where = this.#nameOf(position);
    if (!signal.aborted) return toRouseError(error, where);
    return new RouseError('cancelled', `${where} was cancelled`, { cause: error });
  }

  async #undoStep(progressed: Progressed, position: number): Promise<Ended> {
    const row = progressed.steps[position];
    const step = this.#workflow.steps.find(
      ({ name, number }) => name === row?.name && number === row.number,
    );
    const signal = this.#begin(false);
    try {
      signal.throwIfAborted();
      await step?.undo?.(this.#context(progressed, position, signal));
      return { kind: 'undone', position };
    } catch (error) {
      if (signal.aborted) return { kind: 'interrupted', position };
      const where = `undoing ${this.#nameOf(position)}`;
      this.#parts.report(error, `run ${this.runId}: ${where}`);
      return { kind: 'undo-failed', position, error: toRouseError(error, where) };
    } finally {
      this.#finish();
    }
  }

  async #settle({ run, steps }: Progressed): Promise<Ended> {
    const view = viewOf({ ...run, state: run.outcome ?? run.state }, steps);
    try {
      await this.#workflow.settled?.(view, view.input);
      return { kind: 'settled' };
    } catch (error) {
      const where = `settling ${run.kind} ${run.id}`;
      this.#parts.report(error, where);
      return { kind: 'settle-failed', error: toRouseError(error, where) };
    }
  }

  #begin(cancelable: boolean): AbortSignal {
    const controller = new AbortController();
    this.#now = { controller, cancelable };
    if (this.#stopping) controller.abort(reasons.shutdown);
    else if (this.#cancelled && cancelable) controller.abort(reasons.cancelled);
    return controller.signal;
  }

  #finish(): void {
    this.#now = undefined;
    this.progress = undefined;
  }

  async #backOff(failures: number, undoing: boolean, isAway = false): Promise<void> {
    const signal = this.#begin(!undoing);
    const { undoRetryMs, awayRetryMs, retryMs } = workflowLimits;
    const range = undoing ? undoRetryMs : isAway ? awayRetryMs : retryMs;
    try {
      await this.#parts.clock.sleep(backOffMs(failures, range, this.#parts.random), signal);
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      this.#finish();
    }
  }

  #context(progressed: Progressed, position: number, signal: AbortSignal): StepContext<Json> {
    const mine = this.#now;
    return {
      runId: this.runId,
      input: JSON.parse(progressed.run.input) as Json,
      result: (stepName) => resultOf(progressed.steps.find(({ name }) => name === stepName)),
      progress: (progress) => {
        if (this.#now === mine) this.#keepProgress(position, progress);
      },
      signal,
    };
  }

  #keepProgress(position: number, progress: StepProgress): void {
    this.progress = { position, progress };
    const now = this.#parts.clock.monotonic();
    if (now - this.#publishedMs < workflowLimits.progressEveryMs) return;
    this.#publishedMs = now;
    this.#parts.progressed(this.runId);
  }

  #stepAt(position: number): Step<Json> {
    const step = this.#workflow.steps[position];
    if (step === undefined) throw new RouseError('internal', `there is no step at ${position}`);
    return step;
  }

  #nameOf(position: number): string {
    const step = this.#workflow.steps[position];
    return step === undefined ? `step at ${position}` : `step ${step.number} "${step.name}"`;
  }
}

const reasons = { cancelled: 'cancelled', shutdown: 'shutdown' } as const satisfies Record<
  string,
  RunInterrupted
>;

function resultOf(row: StepRow | undefined): Json | undefined {
  const text = row?.result ?? null;
  return text === null ? undefined : (JSON.parse(text) as Json);
}

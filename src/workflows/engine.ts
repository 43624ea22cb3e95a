import type { Database } from '../database/database.ts';
import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import type { Random } from '../lib/random.ts';
import { workflowLimits } from '../limits.ts';
import type { Engine, Json, RunView, Workflow } from './api.ts';
import { Claims } from './claims.ts';
import { type RunRow, storedError } from './decide.ts';
import { Drive } from './drive.ts';
import { Journal, type RunFilter } from './journal.ts';
import { type TimerListener, Timers } from './timers.ts';

export interface EngineOptions {
  readonly database: Database;
  readonly clock: Clock;
  readonly random: Random;
  /**
   * A server's own name, the same after a restart: what it had claimed when it was killed, it goes
   * on with at once. Servers that share a database have different ones.
   */
  readonly owner?: string;
  /** Errors that no caller waits for: of undos, timers, listeners, the database. */
  report(error: unknown, where: string): void;
}

/**
 * The durable engine (docs/workflow.md). One loop looks for work: it renews claims, fires timers,
 * claims the first unfinished run of each subject and starts a `Drive` for it. It sleeps until
 * something changes here, the next timer, or the poll that sees other servers' changes.
 */
export function createEngine(options: EngineOptions): Engine {
  return new DurableEngine(options);
}

class DurableEngine implements Engine {
  readonly #options: EngineOptions;
  readonly #claims: Claims;
  readonly #journal: Journal;
  readonly #timers: Timers;
  readonly #workflows = new Map<string, Workflow>();
  readonly #drives = new Map<string, { drive: Drive; done: Promise<void> }>();
  readonly #listeners = new Set<(run: RunView) => void>();
  readonly #waiting = new Map<string, Set<Waiter>>();
  /** Unfinished runs of kinds nobody registered: told about once. */
  readonly #orphans = new Set<string>();
  #loop: Promise<void> | undefined;
  #stopping = false;
  #woken = false;
  #sleep = new AbortController();
  #polledMs = Number.NEGATIVE_INFINITY;

  constructor(options: EngineOptions) {
    const { database, clock, random } = options;
    this.#options = options;
    this.#claims = new Claims(database, clock, options.owner ?? 'server');
    this.#journal = new Journal(database, clock, this.#claims, (run) => this.#changed(run));
    this.#timers = new Timers({
      database,
      clock,
      random,
      claims: this.#claims,
      report: (error, where) => this.#report(error, where),
      wake: () => this.#wake(),
    });
  }

  register<Input extends Json>(workflow: Workflow<Input>): void {
    const { kind, steps } = workflow;
    if (this.#workflows.has(kind)) {
      throw new RouseError('internal', `two workflows are called ${kind}`);
    }
    const keys = new Set(steps.map(({ number, name }) => `${number} ${name}`));
    if (keys.size < steps.length) {
      throw new RouseError('internal', `two steps of ${kind} share number and name`);
    }
    this.#workflows.set(kind, workflow);
    this.#wake();
  }

  async start(): Promise<void> {
    if (this.#loop !== undefined) throw new RouseError('internal', 'the engine runs already');
    this.#stopping = false;
    await this.#claims.forgetOwn();
    await this.#look();
    this.#loop = this.#lookOn();
  }

  async stop(): Promise<void> {
    if (this.#loop === undefined) return;
    this.#stopping = true;
    this.#wake();
    for (const { drive } of this.#drives.values()) drive.interrupt();
    await this.#loop;
    const drives = [...this.#drives.values()];
    for (const { drive } of drives) drive.interrupt();
    const quiet = Promise.all([...drives.map(({ done }) => done), this.#timers.quiet()]);
    await this.#atMost(workflowLimits.stopWaitMs, quiet);
    for (const { drive } of this.#drives.values()) {
      drive.lose();
      await this.#claims.release(drive.claim);
    }
    this.#drives.clear();
    for (const waiters of this.#waiting.values()) {
      for (const { reject } of waiters) reject(stopped());
    }
    this.#waiting.clear();
    this.#loop = undefined;
  }

  async submit(kind: string, subject: string, input: Json, id?: string): Promise<RunView> {
    const workflow = this.#workflows.get(kind);
    if (workflow === undefined) {
      throw new RouseError('internal', `no workflow is called ${kind}`);
    }
    return this.#journal.create(workflow, id ?? this.#options.random.id(), subject, input);
  }

  async cancel(runId: string): Promise<void> {
    const { database } = this.#options;
    await database.transaction(async () => {
      if (!(await this.#journal.cancel(runId))) return;
      database.afterCommit(() => {
        this.#drives.get(runId)?.drive.cancel();
        this.#wake();
      });
    });
  }

  async run(id: string): Promise<RunView | undefined> {
    const view = await this.#journal.view(id);
    return view === undefined ? undefined : this.#withProgress(view);
  }

  async runs(filter: RunFilter): Promise<readonly RunView[]> {
    return (await this.#journal.views(filter)).map((view) => this.#withProgress(view));
  }

  async finished(runId: string, signal?: AbortSignal): Promise<RunView> {
    signal?.throwIfAborted();
    const waiter = Promise.withResolvers<RunView>();
    const waiters = this.#waiting.get(runId) ?? new Set();
    this.#waiting.set(runId, waiters.add(waiter));
    // Rejected while the journal is asked, it has no listener yet.
    waiter.promise.catch(() => undefined);
    const onAbort = () => waiter.reject(signal?.reason);
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      // Registered before asking, so that no end is missed in between.
      const view = await this.#journal.view(runId);
      if (view === undefined) throw new RouseError('not-found', `no run is called "${runId}"`);
      if (view.endedMs !== undefined) return view;
      return await waiter.promise;
    } finally {
      signal?.removeEventListener('abort', onAbort);
      waiters.delete(waiter);
      if (waiters.size === 0) this.#waiting.delete(runId);
    }
  }

  onChange(listener: (run: RunView) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  setTimer(name: string, atMs: number, payload: Json): Promise<void> {
    return this.#timers.set(name, atMs, payload);
  }

  clearTimer(name: string): Promise<void> {
    return this.#timers.clear(name);
  }

  onTimer(prefix: string, listener: TimerListener): void {
    this.#timers.on(prefix, listener);
  }

  async #lookOn(): Promise<void> {
    for (let wait = 0; !this.#stopping;) {
      await this.#sleepUntilWoken(wait);
      if (this.#stopping) return;
      wait = await this.#look();
    }
  }

  /** One look for work; answers how long nothing is expected. */
  async #look(): Promise<number> {
    try {
      this.#woken = false;
      await this.#poll();
      await this.#claimRuns();
      const nextTimer = await this.#timers.fireDue();
      return Math.min(workflowLimits.pollMs, nextTimer ?? workflowLimits.pollMs);
    } catch (error) {
      this.#report(error, 'looking for work');
      return workflowLimits.pollMs;
    }
  }

  async #sleepUntilWoken(milliseconds: number): Promise<void> {
    if (this.#woken) return;
    const sleep = new AbortController();
    this.#sleep = sleep;
    try {
      await this.#options.clock.sleep(milliseconds, sleep.signal);
    } catch (error) {
      if (!sleep.signal.aborted) throw error;
    }
  }

  #wake(): void {
    this.#woken = true;
    this.#sleep.abort();
  }

  /** Renews what is held and sees what other servers did. */
  async #poll(): Promise<void> {
    const now = this.#options.clock.monotonic();
    if (now - this.#polledMs < workflowLimits.pollMs) return;
    const drives = [...this.#drives.values()].map(({ drive }) => drive);
    const held = [...drives.map(({ claim }) => claim), ...this.#timers.claims];
    const lost = new Set(await this.#claims.renew(held));
    for (const drive of drives) if (lost.has(drive.claim)) drive.lose();
    for (const id of await this.#journal.cancelled([...this.#drives.keys()])) {
      this.#drives.get(id)?.drive.cancel();
    }
    for (const [id, waiters] of this.#waiting) {
      const view = await this.#journal.view(id);
      if (view?.endedMs !== undefined) for (const { resolve } of waiters) resolve(view);
    }
    this.#polledMs = now;
  }

  async #claimRuns(): Promise<void> {
    for (const run of await this.#journal.ready()) {
      if (this.#stopping || this.#drives.size >= workflowLimits.runsMax) return;
      if (this.#drives.has(run.id)) continue;
      const workflow = this.#workflows.get(run.kind);
      if (workflow === undefined) await this.#tellOrphan(run);
      else await this.#claimRun(run, workflow);
    }
  }

  async #claimRun(run: RunRow, workflow: Workflow): Promise<void> {
    // Cancelled before it began: it only settles, and waits for nobody.
    const name = run.state === 'waiting' && run.outcome !== null ? `run:${run.id}` : subjectOf(run);
    const claim = await this.#claims.take(name);
    if (claim === undefined) return;
    const drive = new Drive(workflow, run.id, claim, {
      journal: this.#journal,
      clock: this.#options.clock,
      random: this.#options.random,
      report: (error, where) => this.#report(error, where),
      progressed: (id) => void this.#publishProgress(id),
    });
    const done = this.#finishDrive(drive);
    this.#drives.set(run.id, { drive, done });
  }

  async #finishDrive(drive: Drive): Promise<void> {
    try {
      await drive.run();
      if (drive.holdsClaim) await this.#claims.release(drive.claim);
    } catch (error) {
      this.#report(error, `run ${drive.runId}`);
    } finally {
      if (this.#drives.get(drive.runId)?.drive === drive) this.#drives.delete(drive.runId);
      this.#wake();
    }
  }

  async #tellOrphan(run: RunRow): Promise<void> {
    if (this.#orphans.has(run.id)) return;
    this.#orphans.add(run.id);
    const error = new RouseError(
      'wrong-state',
      `run ${run.id} is a ${run.kind}, which this version does not know`,
      { advice: 'Start the version of Rouse that began this run and let it end there.' },
    );
    this.#report(error, `run ${run.id}`);
    await this.#journal.markStuck(run.id, storedError(error));
  }

  #changed(run: RunView): void {
    this.#tell(run);
    if (run.state === 'waiting' || run.endedMs !== undefined) this.#wake();
    if (run.endedMs === undefined) return;
    for (const { resolve } of this.#waiting.get(run.id) ?? []) resolve(run);
  }

  #tell(run: RunView): void {
    for (const listener of this.#listeners) {
      try {
        listener(run);
      } catch (error) {
        this.#report(error, `a listener to run ${run.id}`);
      }
    }
  }

  async #publishProgress(id: string): Promise<void> {
    try {
      const view = await this.run(id);
      if (view !== undefined && this.#drives.get(id)?.drive.progress !== undefined) {
        this.#tell(view);
      }
    } catch (error) {
      this.#report(error, `the progress of run ${id}`);
    }
  }

  #withProgress(view: RunView): RunView {
    const current = this.#drives.get(view.id)?.drive.progress;
    if (current === undefined) return view;
    const { position, progress } = current;
    const steps = view.steps.map((step, at) => (at === position ? { ...step, progress } : step));
    return { ...view, steps };
  }

  async #atMost(milliseconds: number, work: Promise<unknown>): Promise<void> {
    const enough = new AbortController();
    const late = this.#options.clock.sleep(milliseconds, enough.signal).catch((error: unknown) => {
      if (!enough.signal.aborted) throw error;
    });
    await Promise.race([work, late]);
    enough.abort();
    await late;
  }

  #report(error: unknown, where: string): void {
    this.#options.report(error, where);
  }
}

type Waiter = PromiseWithResolvers<RunView>;

function subjectOf(run: RunRow): string {
  return `subject:${run.subject}`;
}

function stopped(): RouseError {
  return new RouseError('server-unreachable', 'the server stops', {
    advice: 'Ask again when it is back: the run goes on then.',
  });
}

import { RouseError, isRouseError, toRouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import { proxyLimits } from '../limits.ts';
import type { JobResult, JobSpec, JobView } from './port.ts';

/** What a running job may tell: bytes done of the bytes there are, and what was new. */
export interface JobProgress {
  readonly signal: AbortSignal;
  update(
    change: Partial<Pick<JobView, 'doneBytes' | 'totalBytes' | 'newBytes' | 'knownBytes'>>,
  ): void;
}

export type JobRunner = (spec: JobSpec, progress: JobProgress) => Promise<JobResult>;

interface Job {
  view: JobView;
  readonly abort: AbortController;
  readonly ended: Promise<void>;
  waiters: (() => void)[];
}

/**
 * The proxy's long work, by id. Jobs live in memory: a restarted proxy has none, the server
 * notices (`not-found`) and starts them again; what they had stored in the vault is reused.
 */
export class Jobs {
  readonly #jobs = new Map<string, Job>();
  readonly #run: JobRunner;
  readonly #clock: Clock;
  #closing = false;

  constructor(run: JobRunner, clock: Clock) {
    this.#run = run;
    this.#clock = clock;
  }

  get running(): number {
    return [...this.#jobs.values()].filter(({ view }) => view.state === 'running').length;
  }

  /** The same id answers the job that is there, unless it failed: then it starts anew. */
  start(spec: JobSpec): JobView {
    this.#refuseWhenClosing();
    const known = this.#jobs.get(spec.id);
    if (known !== undefined && (known.view.state === 'running' || known.view.state === 'done')) {
      return known.view;
    }
    const { running } = this;
    if (running >= proxyLimits.jobsMax) {
      throw new RouseError('busy', `this proxy runs ${running} jobs already`);
    }
    this.#forgetOld();
    const abort = new AbortController();
    const job: Job = { view: this.#fresh(spec), abort, ended: Promise.resolve(), waiters: [] };
    this.#jobs.set(spec.id, job);
    Object.assign(job, { ended: this.#drive(job, spec) });
    return job.view;
  }

  #fresh(spec: JobSpec): JobView {
    return {
      id: spec.id,
      kind: spec.kind,
      state: 'running',
      version: 1,
      startedMs: this.#clock.now(),
      doneBytes: 0,
      totalBytes: 0,
      newBytes: 0,
      knownBytes: 0,
    };
  }

  async #drive(job: Job, spec: JobSpec): Promise<void> {
    try {
      const result = await this.#run(spec, {
        signal: job.abort.signal,
        update: (change) => this.#change(job, change),
      });
      this.#change(job, { state: 'done', result, endedMs: this.#clock.now() });
    } catch (thrown) {
      const error = toRouseError(thrown, spec.kind);
      const cancelled = job.abort.signal.aborted || isRouseError(error, 'cancelled');
      this.#change(job, {
        state: cancelled ? 'cancelled' : 'failed',
        error: { code: error.code, message: error.message, advice: error.advice },
        endedMs: this.#clock.now(),
      });
    }
  }

  #change(job: Job, change: Partial<JobView>): void {
    job.view = { ...job.view, ...change, version: job.view.version + 1 };
    const waiters = job.waiters;
    job.waiters = [];
    for (const wake of waiters) wake();
  }

  async view(id: string, waitMs = 0, version = 0): Promise<JobView> {
    const job = this.#find(id);
    if (waitMs > 0 && job.view.version <= version && job.view.state === 'running') {
      const stop = new AbortController();
      const { promise: woken, resolve: wake } = Promise.withResolvers<void>();
      job.waiters.push(wake);
      const timeout = this.#clock.sleep(Math.min(waitMs, proxyLimits.jobWaitMsMax), stop.signal);
      await Promise.race([woken, timeout.catch(() => undefined)]);
      stop.abort();
      job.waiters = job.waiters.filter((other) => other !== wake);
    }
    this.#refuseWhenClosing();
    return job.view;
  }

  async cancel(id: string): Promise<void> {
    const job = this.#find(id);
    job.abort.abort(new RouseError('cancelled', `the ${job.view.kind} was cancelled`));
    await job.ended;
  }

  /**
   * Ends what runs. Nobody wanted it cancelled, so nobody is told so: who waits for a job hears
   * that the proxy is away, and finds the job forgotten when it is back.
   */
  async close(): Promise<void> {
    this.#closing = true;
    await Promise.all([...this.#jobs.keys()].map((id) => this.cancel(id)));
  }

  #refuseWhenClosing(): void {
    if (!this.#closing) return;
    throw new RouseError('proxy-unreachable', 'this proxy is being stopped', {
      advice: 'It goes on when the proxy is back.',
    });
  }

  #find(id: string): Job {
    const job = this.#jobs.get(id);
    if (job === undefined) throw new RouseError('not-found', `this proxy knows no job ${id}`);
    return job;
  }

  #forgetOld(): void {
    for (const [id, job] of this.#jobs) {
      if (this.#jobs.size < proxyLimits.jobsKeptMax) return;
      if (job.view.state !== 'running') this.#jobs.delete(id);
    }
  }
}

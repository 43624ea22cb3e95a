import type { RouseError } from '../errors.ts';

/**
 * The durable engine's nouns. A *workflow* is a named list of steps; a *run* is one execution of
 * it, a row and a journal. A step is written down before it runs and after; killed anywhere, the
 * run goes on: the interrupted step runs again and must find what it already did by a
 * deterministic name. Undos run in reverse, each written down as well.
 */
export type Json =
  | string
  | number
  | boolean
  | null
  | readonly Json[]
  | { readonly [key: string]: Json };

export interface Step<Input extends Json> {
  readonly name: string;
  /** Shown by number; steps of one workflow may share a number (sub-steps). */
  readonly number: number;
  run(context: StepContext<Input>): Promise<Json | void>;
  /** Takes back what `run` did, fully or partly done or not at all. Must be repeatable. */
  undo?(context: StepContext<Input>): Promise<void>;
  /** Attempts before the run fails, for errors that a retry may mend. Default 1. */
  readonly attemptsMax?: number;
  /**
   * The same for `hypervisor-unreachable`, at most `awayRetryMs` apart: a manager that restarts is
   * waited for. Default `attemptsMax`.
   */
  readonly awayAttemptsMax?: number;
  /**
   * The step's own rows, written in the transaction that writes its end down: both or none. Nothing
   * but SQL belongs here. An error makes the step fail.
   */
  record?(result: Json, input: Input): Promise<void>;
}

export interface StepContext<Input extends Json> {
  readonly runId: string;
  readonly input: Input;
  /** Result of an earlier step by name; undefined when it did not run. */
  result(stepName: string): Json | undefined;
  /** Shown to people while the step runs; at most a few a second are kept. */
  progress(progress: StepProgress): void;
  /** Aborted on cancel and on shutdown (`signal.reason` tells which: see `RunInterrupted`). */
  readonly signal: AbortSignal;
}

export interface StepProgress {
  readonly done: number;
  readonly total: number;
  readonly unit: 'bytes' | 'steps';
  readonly message?: string;
}

export interface Workflow<Input extends Json = Json> {
  /** `recovery.open`: part of the journal, never renamed. */
  readonly kind: string;
  readonly steps: readonly Step<Input>[];
  /** After the last step, or after the last undo; runs again if it was interrupted. */
  settled?(run: RunView, input: Input): Promise<void>;
}

export type RunState = 'waiting' | 'running' | 'undoing' | 'done' | 'failed' | 'cancelled';
export type StepState = 'waiting' | 'running' | 'done' | 'failed' | 'undoing' | 'undone';

export interface StepView {
  readonly name: string;
  readonly number: number;
  readonly state: StepState;
  readonly startedMs?: number;
  readonly endedMs?: number;
  readonly attempts: number;
  readonly progress?: StepProgress;
  readonly result?: Json;
  readonly error?: { readonly code: string; readonly message: string; readonly advice: string };
}

export interface RunView {
  readonly id: string;
  readonly kind: string;
  /** What it is about, such as a recovery's id; runs of one subject never run at once. */
  readonly subject: string;
  readonly state: RunState;
  readonly input: Json;
  readonly createdMs: number;
  readonly endedMs?: number;
  readonly steps: readonly StepView[];
  /** Why it failed. */
  readonly error?: { readonly code: string; readonly message: string; readonly advice: string };
  /** Why it has not ended yet, though nothing is left to do but undo or settle; tried again. */
  readonly stuck?: { readonly code: string; readonly message: string; readonly advice: string };
}

/** Why a step's signal was aborted. */
export type RunInterrupted = 'cancelled' | 'shutdown';

export interface Engine {
  register<Input extends Json>(workflow: Workflow<Input>): void;
  /** Goes on with every unfinished run, then takes new ones. */
  start(): Promise<void>;
  /** Interrupts running steps without undoing; the next start goes on. */
  stop(): Promise<void>;
  /**
   * Durable when it resolves. `id` makes it idempotent: the same id answers the run that is there.
   */
  submit(kind: string, subject: string, input: Json, id?: string): Promise<RunView>;
  /** Aborts the running step, then undoes in reverse. No error when it has ended. */
  cancel(runId: string): Promise<void>;
  run(id: string): Promise<RunView | undefined>;
  /** Oldest first; at most the newest thousand. */
  runs(filter: { subject?: string; kind?: string; active?: boolean }): Promise<readonly RunView[]>;
  /** Resolves when the run has ended. */
  finished(runId: string, signal?: AbortSignal): Promise<RunView>;
  /** Every change of every run, in order, from now on. */
  onChange(listener: (run: RunView) => void): () => void;
  /** A durable timer; setting the same name again moves it. The listener runs at least once. */
  setTimer(name: string, atMs: number, payload: Json): Promise<void>;
  clearTimer(name: string): Promise<void>;
  onTimer(prefix: string, listener: (name: string, payload: Json) => Promise<void>): void;
}

export type StepFailure = RouseError;

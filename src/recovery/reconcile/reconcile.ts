import { endedRecoveryStates, type RecoveryRow } from '../../catalog/recoveries.ts';
import { toRouseError } from '../../errors.ts';
import { reconcileLimits } from './limits.ts';
import type { RecoveryInput } from '../plan.ts';
import type {
  ReconcileFinding,
  ReconcileReport,
  ReconcileRequest,
  ReconcileService,
} from '../reconcile-schema.ts';
import type { RecoveryWorld } from '../world.ts';
import { endLeftBackups } from './backups.ts';
import { Hand } from './hand.ts';
import { clearLeftovers } from './leftovers.ts';
import { look, nothingSeen, type Seen, type SeenCase } from './seen.ts';
import { restoreStanding } from './standing.ts';

/**
 * Compares what should be (recoveries, backups and runs in the database) with what is (at every
 * proxy and hypervisor), and mends the difference.
 *
 * Invariants:
 * - Nobody else's things are touched. Ours are proven by where they point (seen.ts), never by a name
 *   alone; in doubt it is said and left.
 * - The world is looked at first and the database read afterwards. A row is committed before
 *   anything is made for it, so whatever was seen has its row by then; what a run works on is left
 *   to that run. Each case is read again just before it is worked on.
 * - A machine that runs is never stopped, one that was relocated never touched, and an export goes
 *   only when nobody can be using it.
 * - Every mend may be repeated, and a failed one ends no other.
 */
export interface ReconcileWorld extends RecoveryWorld {
  hypervisors(): Promise<readonly { readonly id: string; readonly name: string }[]>;
  inputOf(row: RecoveryRow): RecoveryInput;
  /** The host that step 3 chose; null before. */
  hostId(recoveryId: string): Promise<string | null>;
  /** Undefined: no such backup is known. */
  backupState(token: string): Promise<string | undefined>;
  isBackupRunning(token: string): Promise<boolean>;
  /** Labels of all savesets: what names a checkpoint that is still needed. */
  checkpoints(): Promise<ReadonlySet<string>>;
  /** A line in the log of events, about a finding. */
  report(level: 'info' | 'warning', finding: ReconcileFinding): Promise<void>;
  /** An error of a pass that nobody waits for. */
  failed(error: unknown): void;
}

export class Reconciler implements ReconcileService {
  readonly #world: ReconcileWorld;
  readonly #stopping = new AbortController();
  /** What was left already, so that it is told once. */
  #left = new Set<string>();
  #last: Promise<unknown> = Promise.resolve();
  #going: Promise<void> = Promise.resolve();

  constructor(world: ReconcileWorld) {
    this.#world = world;
  }

  /** Things that the last pass could not or would not mend. */
  get leftCount(): number {
    return this.#left.size;
  }

  /** One after the other: two passes would mend the same things. */
  reconcile(request: ReconcileRequest): Promise<ReconcileReport> {
    const pass = this.#last.then(() => this.#pass(request));
    this.#last = pass.catch(() => undefined);
    return pass;
  }

  async #pass(request: ReconcileRequest): Promise<ReconcileReport> {
    const hand = new Hand(request, this.#stopping.signal);
    const seen = await look(this.#world);
    const rows = await this.#world.recoveries.list({ active: true });
    const ids = new Set([...seen.cases.keys(), ...rows.map(({ id }) => id)]);
    for (const id of ids) {
      if (this.#stopping.signal.aborted) break;
      await this.#one(hand, id, seen.cases.get(id) ?? nothingSeen, seen);
    }
    await endLeftBackups(this.#world, hand, seen);
    if (!hand.isDry) await this.#tell(hand.findings);
    return {
      atMs: this.#world.clock.now(),
      dryRun: hand.isDry,
      findings: hand.findings,
      unreachable: seen.unreachable.map(({ kind, name, why }) => ({ kind, name, why })),
    };
  }

  async #one(hand: Hand, id: string, seen: SeenCase, all: Seen): Promise<void> {
    const { recoveries, engine } = this.#world;
    const before = await recoveries.find(id);
    const runs = await engine.runs({ subject: id, active: true });
    const row = await recoveries.find(id);
    // A run works on it, or has just ended: what it made or took is no drift.
    if (runs.length > 0 || before?.state !== row?.state) return;
    try {
      if (row === undefined || endedRecoveryStates.includes(row.state)) {
        await clearLeftovers(this.#world, hand, { id, row, seen, all });
      } else {
        const input = this.#world.inputOf(row);
        const hostId = await this.#world.hostId(id);
        await restoreStanding(this.#world, hand, { row, input, hostId, seen, all });
      }
    } catch (error) {
      const { message, advice } = toRouseError(error, id);
      const thing = { kind: 'recovery' as const, name: row?.name ?? id, where: '', recovery: id };
      const problem = 'what is left of it could not be looked at to the end';
      const note = `${message}. ${advice}`;
      hand.findings.push({ ...thing, problem, outcome: 'failed', note });
    }
  }

  /** What was mended every time, what is left when it is new. */
  async #tell(findings: readonly ReconcileFinding[]): Promise<void> {
    const left = new Set<string>();
    for (const finding of findings) {
      const key = `${finding.kind} ${finding.name} ${finding.where} ${finding.note}`;
      if (finding.outcome === 'mended') await this.#world.report('info', finding);
      else left.add(key);
      if (finding.outcome === 'mended' || this.#left.has(key)) continue;
      await this.#world.report('warning', finding);
    }
    this.#left = left;
  }

  /** By itself: soon after the start, then every quarter of an hour. */
  start(): void {
    this.#going = this.#keepGoing();
  }

  async #keepGoing(): Promise<void> {
    const { clock } = this.#world;
    const { signal } = this.#stopping;
    let pauseMs: number = reconcileLimits.firstAfterMs;
    while (!signal.aborted) {
      try {
        await clock.sleep(pauseMs, signal);
        await this.reconcile({ dryRun: false, force: false });
      } catch (error) {
        if (!signal.aborted) this.#world.failed(error);
      }
      pauseMs = reconcileLimits.everyMs;
    }
  }

  /** Ends after the mend that is being made. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#going;
    await this.#last;
  }
}

import assert from 'node:assert/strict';
import { RouseError } from '#src/errors.ts';
import type { Json, RunView, Step, StepContext, Workflow } from '#src/workflows/api.ts';
import type { Killer } from './killable.ts';

/** What the outside does wrong, by the step's name; counted down as it happens. */
export interface Faults {
  /** Calls that fail before they have done anything. */
  readonly createFails?: Record<string, number>;
  /** Calls that do it and then fail, as when an answer is lost. */
  readonly answerLost?: Record<string, number>;
  readonly removeFails?: Record<string, number>;
}

export const always = 1_000_000;

/**
 * The outside: named things that outlive every process. Creating looks by name first, as every
 * step must; the tallies show whether anything was really done twice.
 */
export class World {
  readonly things = new Set<string>();
  readonly created: string[] = [];
  readonly removed: string[] = [];
  readonly settled: string[] = [];
  readonly fired: string[] = [];
  /** How many things the second run of the subject found. */
  readonly found: number[] = [];
  readonly #faults: { [Kind in keyof Faults]-?: Map<string, number> };
  killer: Killer;
  /** Steps running now, of the process that lives. */
  busy = 0;

  constructor(killer: Killer, faults: Faults) {
    this.killer = killer;
    const counts = (record: Record<string, number> = {}) => new Map(Object.entries(record));
    this.#faults = {
      createFails: counts(faults.createFails),
      answerLost: counts(faults.answerLost),
      removeFails: counts(faults.removeFails),
    };
  }

  async create(name: string): Promise<string> {
    return this.#call(() => {
      this.#failIf('createFails', name);
      if (!this.things.has(name)) {
        this.things.add(name);
        this.created.push(name);
      }
      this.#failIf('answerLost', name);
      return `id of ${name}`;
    });
  }

  async remove(name: string): Promise<void> {
    await this.#call(() => {
      this.#failIf('removeFails', name);
      if (this.things.delete(name)) this.removed.push(name);
    });
  }

  async look(): Promise<void> {
    await this.#call(() => this.found.push(this.things.size));
  }

  async settle(state: string): Promise<void> {
    await this.#call(() => this.settled.push(state));
  }

  /** May die before and after; nothing of one subject may run beside it. */
  async #call<T>(effect: () => T): Promise<T> {
    const { killer } = this;
    assert.equal(this.busy, 0, 'two steps of one subject run at once');
    this.busy += 1;
    try {
      await killer.point();
      const value = effect();
      await killer.point();
      return value;
    } finally {
      this.busy -= 1;
    }
  }

  #failIf(kind: keyof Faults, name: string): void {
    const left = this.#faults[kind].get(name) ?? 0;
    if (left === 0) return;
    this.#faults[kind].set(name, left - 1);
    throw new RouseError('host-unreachable', `${name}: ${kind}`);
  }
}

export const things = ['clone', 'export', 'datastore', 'machine'] as const;

/** Four things outside, with a step in their middle that does nothing there. */
export function openWorkflow(world: World): Workflow {
  const make = (number: number, name: string): Step<Json> => ({
    number,
    name,
    attemptsMax: 3,
    run: async () => ({ id: await world.create(name) }),
    undo: () => world.remove(name),
  });
  const note: Step<Json> = {
    number: 3,
    name: 'note',
    run: async (context) => checkResults(context),
  };
  return {
    kind: 'test.open',
    steps: [make(1, 'clone'), make(2, 'export'), note, make(4, 'datastore'), make(5, 'machine')],
    settled: (run: RunView) => world.settle(run.state),
  };
}

async function checkResults(context: StepContext<Json>): Promise<Json> {
  for (const name of ['clone', 'export']) {
    assert.deepEqual(context.result(name), { id: `id of ${name}` });
  }
  return 'noted';
}

/** Of the same subject: must find everything or nothing. */
export function lookWorkflow(world: World): Workflow {
  return {
    kind: 'test.look',
    steps: [{ number: 1, name: 'look', attemptsMax: 3, run: () => world.look() }],
  };
}

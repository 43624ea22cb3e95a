import type { Database } from '../database/database.ts';
import { nextNumber } from '../database/database.ts';
import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import { workflowLimits } from '../limits.ts';

/** The right to work on something until the lease ends; the fence tells old holders from new. */
export interface Claim {
  readonly name: string;
  readonly fence: number;
}

/**
 * Who works on what. A claim is a row; every commit of the work under it first proves that the
 * row still bears its fence. Whoever lost it (a process that slept too long, a server that another
 * one took over from) cannot commit any more.
 */
export class Claims {
  readonly #database: Database;
  readonly #clock: Clock;
  readonly #owner: string;

  constructor(database: Database, clock: Clock, owner: string) {
    this.#database = database;
    this.#clock = clock;
    this.#owner = owner;
  }

  /** Undefined: another owner holds it. An own one is taken over from the process before. */
  async take(name: string): Promise<Claim | undefined> {
    return this.#database.transaction(async () => {
      const { query } = this.#database;
      const now = this.#clock.now();
      const held = await query
        .selectFrom('claims')
        .selectAll()
        .where('name', '=', name)
        .executeTakeFirst();
      if (held !== undefined && held.owner !== this.#owner && held.expiresMs > now) {
        return undefined;
      }
      const fence = await nextNumber(this.#database, 'fence');
      const claim = { owner: this.#owner, fence, expiresMs: now + workflowLimits.leaseMs };
      await query
        .insertInto('claims')
        .values({ name, ...claim })
        .onConflict((on) => on.column('name').doUpdateSet(claim))
        .execute();
      return { name, fence };
    });
  }

  /** Renews it, and locks it until the surrounding transaction ends. Throws `ClaimLost`. */
  async hold({ name, fence }: Claim): Promise<void> {
    const { numUpdatedRows } = await this.#database.query
      .updateTable('claims')
      .set({ expiresMs: this.#clock.now() + workflowLimits.leaseMs })
      .where('name', '=', name)
      .where('owner', '=', this.#owner)
      .where('fence', '=', fence)
      .executeTakeFirst();
    if (Number(numUpdatedRows) === 0) throw new ClaimLost(name);
  }

  /** No error when it is gone or lost. */
  async release({ name, fence }: Claim): Promise<void> {
    await this.#database.transaction(async () => {
      await this.#database.query
        .deleteFrom('claims')
        .where('name', '=', name)
        .where('fence', '=', fence)
        .execute();
    });
  }

  /** Those of the list that are lost. */
  async renew(list: readonly Claim[]): Promise<readonly Claim[]> {
    if (list.length === 0) return [];
    return this.#database.transaction(async () => {
      const lost: Claim[] = [];
      for (const claim of list) {
        try {
          await this.hold(claim);
        } catch (error) {
          if (!(error instanceof ClaimLost)) throw error;
          lost.push(claim);
        }
      }
      return lost;
    });
  }

  /** What a process of the same owner left when it was killed. */
  async forgetOwn(): Promise<void> {
    await this.#database.transaction(async () => {
      await this.#database.query.deleteFrom('claims').where('owner', '=', this.#owner).execute();
    });
  }
}

/** Another server goes on with this work; nothing of ours may be written any more. */
export class ClaimLost extends RouseError {
  constructor(name: string) {
    super('busy', `another server has taken over ${name}`);
  }
}

import type { Kysely } from 'kysely';
import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import type { Database } from './database.ts';
import { catalogTables } from './migrations/0002-catalog.ts';
import { proxyTables } from './migrations/0003-proxies.ts';
import { workflowTables } from './migrations/0001-workflows.ts';
import type { Tables } from './tables.ts';

/**
 * Numbered from 1 without gaps, never changed once released, each applied in one transaction that
 * also writes its number down.
 */
export interface Migration {
  readonly name: string;
  up(query: Kysely<Tables>): Promise<void>;
}

export const migrations: readonly Migration[] = [workflowTables, catalogTables, proxyTables];

export async function migrate(
  database: Database,
  path: string,
  clock: Clock,
  list: readonly Migration[] = migrations,
): Promise<void> {
  await database.query.schema
    .createTable('migrations')
    .ifNotExists()
    .addColumn('number', 'integer', (column) => column.primaryKey())
    .addColumn('name', 'text', (column) => column.notNull())
    .addColumn('applied_ms', 'bigint', (column) => column.notNull())
    .execute();
  const applied = await appliedNumber(database);
  if (applied > list.length) throw newerFormat(path, applied, list.length);
  for (const [index, migration] of list.entries()) {
    if (index >= applied) await apply(database, index + 1, migration, clock);
  }
}

async function appliedNumber(database: Database): Promise<number> {
  const row = await database.query
    .selectFrom('migrations')
    .select((eb) => eb.fn.max('number').as('number'))
    .executeTakeFirst();
  return Number(row?.number ?? 0);
}

async function apply(database: Database, number: number, migration: Migration, clock: Clock) {
  await database.transaction(async () => {
    if ((await appliedNumber(database)) >= number) return;
    await migration.up(database.query);
    await database.query
      .insertInto('migrations')
      .values({ number, name: migration.name, appliedMs: clock.now() })
      .execute();
  });
}

function newerFormat(path: string, found: number, known: number): RouseError {
  return new RouseError(
    'newer-format',
    `${path} has schema ${found}; this version of Rouse knows schemas up to ${known}`,
    { details: { found, known } },
  );
}

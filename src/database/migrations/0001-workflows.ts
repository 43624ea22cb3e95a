import type { Migration } from '../migrations.ts';

/** The engine's journal (docs/workflow.md) and the counters. */
export const workflowTables: Migration = {
  name: 'workflows',
  async up(query) {
    const { schema } = query;
    await schema
      .createTable('counters')
      .addColumn('name', 'text', (c) => c.primaryKey())
      .addColumn('value', 'bigint', (c) => c.notNull())
      .execute();
    await schema
      .createTable('runs')
      .addColumn('id', 'text', (c) => c.primaryKey())
      .addColumn('kind', 'text', (c) => c.notNull())
      .addColumn('subject', 'text', (c) => c.notNull())
      .addColumn('seq', 'bigint', (c) => c.notNull().unique())
      .addColumn('state', 'text', (c) => c.notNull())
      .addColumn('outcome', 'text')
      .addColumn('input', 'text', (c) => c.notNull())
      .addColumn('error', 'text')
      .addColumn('stuck', 'text')
      .addColumn('cancel_ms', 'bigint')
      .addColumn('created_ms', 'bigint', (c) => c.notNull())
      .addColumn('ended_ms', 'bigint')
      .addColumn('version', 'bigint', (c) => c.notNull())
      .execute();
    await schema.createIndex('runs_by_subject').on('runs').columns(['subject', 'seq']).execute();
    await schema.createIndex('runs_by_end').on('runs').columns(['ended_ms', 'seq']).execute();
    await schema
      .createTable('steps')
      .addColumn('run_id', 'text', (c) => c.notNull().references('runs.id').onDelete('cascade'))
      .addColumn('position', 'integer', (c) => c.notNull())
      .addColumn('number', 'integer', (c) => c.notNull())
      .addColumn('name', 'text', (c) => c.notNull())
      .addColumn('state', 'text', (c) => c.notNull())
      .addColumn('attempts', 'integer', (c) => c.notNull())
      .addColumn('failures', 'integer', (c) => c.notNull())
      .addColumn('crashes', 'integer', (c) => c.notNull())
      .addColumn('undo_attempts', 'integer', (c) => c.notNull())
      .addColumn('started_ms', 'bigint')
      .addColumn('ended_ms', 'bigint')
      .addColumn('result', 'text')
      .addColumn('error', 'text')
      .addColumn('undo_error', 'text')
      .addPrimaryKeyConstraint('steps_key', ['run_id', 'position'])
      .execute();
    await schema
      .createTable('claims')
      .addColumn('name', 'text', (c) => c.primaryKey())
      .addColumn('owner', 'text', (c) => c.notNull())
      .addColumn('fence', 'bigint', (c) => c.notNull())
      .addColumn('expires_ms', 'bigint', (c) => c.notNull())
      .execute();
    await schema
      .createTable('timers')
      .addColumn('name', 'text', (c) => c.primaryKey())
      .addColumn('at_ms', 'bigint', (c) => c.notNull())
      .addColumn('due_ms', 'bigint', (c) => c.notNull())
      .addColumn('payload', 'text', (c) => c.notNull())
      .addColumn('version', 'bigint', (c) => c.notNull())
      .addColumn('failures', 'integer', (c) => c.notNull())
      .addColumn('error', 'text')
      .execute();
    await schema.createIndex('timers_by_due').on('timers').columns(['due_ms']).execute();
  },
};

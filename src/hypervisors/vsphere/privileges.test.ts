import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { needsOfAll, needsOfRecovery } from './preflight.ts';

const guide = join(resolve(import.meta.dirname, '..', '..', '..'), 'docs', 'guide', 'vsphere.md');

test('the role in the guide has exactly the privileges that are checked', () => {
  const text = readFileSync(guide, 'utf8');
  const pasted = /\$privileges = @'\n([^']+)'@/.exec(text)?.[1]?.trim().split('\n');
  const checked = Object.values(needsOfAll).flat();
  assert.deepEqual([...(pasted ?? [])].sort(), [...checked].sort());
  assert.ok(
    Object.values(needsOfRecovery)
      .flat()
      .every((one) => checked.includes(one)),
  );
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ForgetfulFiles } from '../testing/forgetful-files.ts';
import { ExportList } from './export-list.ts';

const entry = (cloneId: string) => ({ cloneId, clients: ['192.0.2.1'] });

test('what was added is there after a power cut', async () => {
  for (let seed = 0; seed < 50; seed++) {
    const files = new ForgetfulFiles(seed);
    await files.makeDirectory('/data');
    await files.syncDirectory('/');
    const list = new ExportList(files, '/data/exports.json');
    await list.add(entry('a'));
    await Promise.all([list.add(entry('b')), list.add(entry('c'))]);
    await list.remove('a');
    const after = new ExportList(files.crash(), '/data/exports.json');
    await after.load();
    assert.deepEqual(after.all(), [entry('b'), entry('c')]);
  }
});

test('a damaged list is named, with what to do', async () => {
  const files = new ForgetfulFiles(1);
  await files.makeDirectory('/data');
  const file = await files.open('/data/exports.json', 'write');
  await file.write([Buffer.from('{"version": 1, "exports": [')], 0);
  await file.close();
  const list = new ExportList(files, '/data/exports.json');
  await assert.rejects(list.load(), { code: 'corrupt-data', message: /exports\.json/ });
});

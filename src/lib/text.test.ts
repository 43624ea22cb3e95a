import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { RouseError } from '../errors.ts';
import {
  distance,
  fitText,
  formatBytes,
  formatDuration,
  formatTable,
  nearest,
  padText,
  parseBytes,
  pick,
  plural,
  printable,
  shellWord,
  textWidth,
  unknownName,
} from './text.ts';

test('sizes have three digits and binary units', () => {
  const cases: [number, string][] = [
    [0, '0 B'],
    [999, '999 B'],
    [1000, '0.98 KiB'],
    [1536, '1.5 KiB'],
    [1024 ** 2, '1 MiB'],
    [100 * 1024, '100 KiB'],
    [1023 * 1024, '1 MiB'],
    [9.995 * 1024 ** 3, '10 GiB'],
    [5 * 1024 ** 4, '5 TiB'],
    [-2048, '-2 KiB'],
    [Number.NaN, '?'],
  ];
  for (const [bytes, text] of cases) assert.equal(formatBytes(bytes), text);
});

test('sizes are read as they are written', () => {
  const cases: [string, number][] = [
    ['4096', 4096],
    ['4k', 4096],
    ['1.5G', 1.5 * 1024 ** 3],
    ['512 MiB', 512 * 1024 ** 2],
    ['2tb', 2 * 1024 ** 4],
    ['7b', 7],
  ];
  for (const [text, bytes] of cases) assert.equal(parseBytes(text), bytes);
  for (const text of ['', 'G', '-1', '1x', '1 2', '9999999P', '0x10', '1e3']) {
    assert.throws(() => parseBytes(text), { code: 'bad-request' }, text);
  }
  const sizes = fc.integer({ min: 0, max: 999 });
  fc.assert(
    fc.property(sizes, fc.constantFrom('B', 'KiB', 'MiB', 'GiB'), (count, unit) => {
      const text = `${count} ${unit}`;
      if (count > 0) assert.equal(formatBytes(parseBytes(text)), text);
    }),
  );
});

test('durations have two units at most', () => {
  const cases: [number, string][] = [
    [0, '0 ms'],
    [999.7, '1 s'],
    [1250, '1.25 s'],
    [12_340, '12.3 s'],
    [59_960, '1 min'],
    [61_000, '1 min 1 s'],
    [3_599_900, '1 h'],
    [3_600_000 * 5 + 60_000 * 7, '5 h 7 min'],
    [86_400_000 * 2 + 3_600_000 * 3, '2 d 3 h'],
    [-1000, '-1 s'],
  ];
  for (const [ms, text] of cases) assert.equal(formatDuration(ms), text);
});

test('distance counts edits', () => {
  assert.equal(distance('wbe01', 'web01'), 1);
  assert.equal(distance('', 'abc'), 3);
  assert.equal(distance('WEB', 'web'), 0);
  const word = fc.string({ maxLength: 12 });
  fc.assert(
    fc.property(word, word, (a, b) => {
      assert.equal(distance(a, b), distance(b, a));
      assert.ok(
        distance(a, b) <= Math.max([...a.toLowerCase()].length, [...b.toLowerCase()].length),
      );
    }),
  );
});

test('the nearest names are those that were meant', () => {
  const names = ['web01', 'web02', 'db01', 'mail', 'fileserver-east'];
  assert.deepEqual(nearest('wbe01', names, 1), ['web01']);
  assert.deepEqual(nearest('fileserver', names), ['fileserver-east']);
  assert.deepEqual(nearest('zzzzzzzz', names), []);
});

test('unknown names are answered with the nearest, with all, or with their number', () => {
  const says = (word: string, names: string[]) => unknownName('machine', word, names).advice;
  assert.equal(says('wbe01', ['web01', 'mail']), 'Did you mean web01?');
  assert.equal(says('xyzxyz', ['web01', 'mail']), 'There are: web01, mail.');
  assert.equal(says('x', []), 'There is no machine yet.');
  const many = Array.from({ length: 9 }, (_, index) => `qqqqqqqq${index}`);
  assert.equal(says('abc', many), 'There are 9.');
});

test('one is picked by id, name, or the beginning of its id', () => {
  const items = [
    { id: 'abcd1234', name: 'web' },
    { id: 'abcd9999', name: 'twin' },
    { id: 'ffff0000', name: 'twin' },
    { id: 'web', name: 'named like another' },
  ];
  assert.equal(pick('machine', 'web', items).name, 'named like another');
  assert.equal(pick('machine', 'abcd1', items).name, 'web');
  assert.equal(pick('machine', 'ffff0000', items).id, 'ffff0000');
  const refuse = (word: string, message: RegExp) =>
    assert.throws(
      () => pick('machine', word, items),
      (error) => error instanceof RouseError && message.test(`${error.message}. ${error.advice}`),
    );
  refuse('twin', /"twin" is 2 machines\. Name one by its id: abcd9999 or ffff0000/);
  refuse('abcd', /"abcd" is 2 machines/);
  refuse('fff', /no machine is called "fff"/);
});

test('words for people, and for shells', () => {
  assert.equal(plural(1, 'pack'), '1 pack');
  assert.equal(plural(0, 'pack'), '0 packs');
  assert.equal(shellWord('/srv/a-b_c.d'), '/srv/a-b_c.d');
  assert.equal(shellWord("it's $HOME"), `'it'\\''s $HOME'`);
  assert.equal(shellWord(''), "''");
});

test('width counts cells, not characters', () => {
  assert.equal(textWidth('abc'), 3);
  assert.equal(textWidth('東京'), 4);
  assert.equal(textWidth('e\u0301'), 1);
  assert.equal(textWidth('👩‍💻'), 2);
  assert.equal(textWidth('\u001b[31mred\u001b[0m'), 3);
  assert.equal(fitText('東京都', 5), '東京…');
  assert.equal(fitText('東京都', 4), '東…');
  assert.equal(fitText('/a/long/path/to/it', 9, 'middle'), '/a/l…o/it');
  assert.equal(padText('東', 4, 'right'), '  東');
});

test('what is cut fits, whatever it is', () => {
  const text = fc.string({ unit: 'grapheme', maxLength: 30 }).map(printable);
  fc.assert(
    fc.property(text, fc.integer({ min: 0, max: 20 }), fc.boolean(), (value, width, middle) => {
      const cut = fitText(value, width, middle ? 'middle' : 'end');
      assert.ok(textWidth(cut) <= width);
      if (textWidth(value) <= width) assert.equal(cut, value);
    }),
  );
});

test('tables fit, and foreign names cannot move the cursor', () => {
  const columns = [
    { title: 'name', flexible: true, minWidth: 6 },
    { title: 'size', align: 'right' as const },
  ];
  const rows = [
    ['evil\u001b[2J\nname', '1 B'],
    ['x'.repeat(100), '100 GiB'],
  ];
  const lines = formatTable(columns, rows, 40);
  assert.equal(lines.length, 3);
  assert.equal(lines[0], `NAME${' '.repeat(32)}SIZE`);
  assert.ok(lines.every((line) => textWidth(line) <= 40));
  assert.ok(!lines.join('').includes('\u001b'));
  const cell = fc.string({ unit: 'grapheme', maxLength: 60 });
  fc.assert(
    fc.property(fc.array(fc.tuple(cell, cell), { maxLength: 5 }), (some) => {
      for (const line of formatTable(columns, some, 60)) assert.ok(textWidth(line) <= 60);
    }),
  );
});

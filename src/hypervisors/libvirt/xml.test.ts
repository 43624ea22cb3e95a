import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { isRouseError } from '../../errors.ts';
import { attribute, element, find, parseXml, text, writeXml } from './xml.ts';
import type { XmlElement } from './xml.ts';

test('XML is read in order, with attributes, text and character references', () => {
  const root = parseXml(
    `<?xml version='1.0'?><!-- c --><a x="1 &amp; &#x41;"><b>t &lt; u</b><b/><c:d xmlns:c='u'/></a>`,
    'a test',
  );
  assert.equal(attribute(root, 'x'), '1 & A');
  assert.equal(text(find(root, 'b')), 't < u');
  assert.deepEqual(
    root.children.map((node) => (typeof node === 'string' ? node : node.name)),
    ['b', 'b', 'c:d'],
  );
});

test('what is not one plain document is refused', () => {
  const texts = [
    '',
    'x',
    '<a>',
    '<a/><b/>',
    '<a>&other;</a>',
    '<a>&#x110000;</a>',
    '<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>',
    `${'<a>'.repeat(1000)}${'</a>'.repeat(1000)}`,
  ];
  for (const text of texts) {
    assert.throws(() => parseXml(text, 'a test'), { code: 'bad-request' }, text.slice(0, 60));
  }
});

test('any bytes give a tree or a bad-request', () => {
  const piece = fc.constantFrom('<', '>', '/', 'a', ' ', '=', "'", '"', '&', ';', '!', '--', '?');
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 60 }), (pieces) => {
      try {
        parseXml(pieces.join(''), 'noise');
      } catch (error) {
        assert.ok(isRouseError(error, 'bad-request'), String(error));
      }
    }),
    { numRuns: 2000 },
  );
});

test('what is written is read back the same', () => {
  const name = fc.stringMatching(/^[a-z][a-z0-9-]{0,8}$/);
  const value = fc.stringMatching(/^[!-~äß€\n]{0,20}$/);
  const tree = fc.letrec<{ node: XmlElement }>((tie) => ({
    node: fc
      .record({
        name,
        attributes: fc.dictionary(name, value, { maxKeys: 3 }),
        text: fc.stringMatching(/^[!-~]{1,20}$/),
        children: fc.oneof(
          { maxDepth: 3 },
          fc.constant([]),
          fc.array(tie('node'), { maxLength: 3 }),
        ),
      })
      .map((one) => element(one.name, one.attributes, pick(one.children, one.text))),
  })).node;
  fc.assert(
    fc.property(tree, (root) => {
      assert.deepEqual(parseXml(writeXml(root), 'a round trip'), root);
    }),
    { numRuns: 300 },
  );
});

function pick(children: readonly XmlElement[], text: string): readonly (XmlElement | string)[] {
  return children.length > 0 ? children : [text];
}

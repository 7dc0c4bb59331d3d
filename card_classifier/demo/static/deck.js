// Whether all cards are from one deck: a switch in both tabs that says the same in each, and is remembered.
(demo => {
  const name = 'card-demo-one-deck';

  // A browser that keeps nothing, in a private window for instance, forgets it with the page.
  const remembered = () => {
    try {
      return localStorage.getItem(name) === '1';
    } catch {
      return false;
    }
  };

  const remember = () => {
    try {
      localStorage.setItem(name, isOne ? '1' : '0');
    } catch {
      // It holds for this page
    }
  };

  let isOne = remembered();
  const parts = [];

  demo.isOneDeck = () => isOne;

  // The switch in a part of the page; `changed` is called after somebody has turned it, here or in the other part.
  demo.followDeck = (part, changed) => {
    const turned = part.querySelector('[data-one-deck]');
    turned.checked = isOne;
    parts.push({turned, changed});
    turned.addEventListener('change', () => {
      isOne = turned.checked;
      remember();
      for (const one of parts) {
        one.turned.checked = isOne;
        one.changed();
      }
    });
  };
})(window.cardDemo);
